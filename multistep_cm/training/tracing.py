"""Traced programs kept in a folder, so that a later start need not trace them.

JAX finds a compiled program by the program itself, which must be traced and lowered
first: of a small network that takes as long as everything else. Here the traced one
(StableHLO, by `jax.export`) is found by what it is made of: the source of this package,
the versions of what it is written with, JAX's settings, the config, the devices, and
the shapes and shardings of the arguments. Another value of any of them is another file.
A file that is not whole is made again. Kept are the train step and the initialisation,
which tells a run the shapes of its parameters even if it is resumed.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
from jax import export
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm.config import flatten
from multistep_cm.errors import UserError
from multistep_cm.files import make_folder, written_aside
from multistep_cm.losses.signature import Params
from multistep_cm.provenance import versions
from multistep_cm.sharding.distributed import is_main_process
from multistep_cm.sharding.mesh import replicated
from multistep_cm.training.state import TrainState
from multistep_cm.training.step import RawBatch, StepMetrics, TrainStep

PACKAGE = Path(__file__).parents[1]
FOLDER = "traced"
"""In that of the compilation cache."""

Init: TypeAlias = Callable[[jax.Array], Params]
"""From a key to fresh parameters."""

WRITTEN_WITH = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_dtypes")


def program_folder() -> Path | None:
    """Beside the compiled programs; None without a cache, or with one in a bucket."""
    cache = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return Path(cache, FOLDER) if cache and "://" not in cache else None


def kept_step(
    step: TrainStep,
    state: TrainState,
    raw: Mapping[str, Any],
    frozen: Params,
    config: ConfigDict,
    mesh: Mesh,
    folder: Path,
) -> TrainStep:
    """The same step, as the program that `folder` holds of it, or now does.

    The arguments are those of `compile_step`: arrays or shapes, with shardings. A step
    that cannot be kept comes back as it is.
    """
    program = _kept(
        "train step",
        (state, raw, frozen),
        config,
        folder,
        lambda: _trace_step(step, state, raw, frozen, mesh),
    )
    if program is None:
        return step
    structure = jax.tree.structure(state)

    def train_step(
        state: TrainState, raw: RawBatch, frozen: Params
    ) -> tuple[TrainState, StepMetrics]:
        leaves, metrics = program.call(*jax.tree.leaves((state, raw, frozen)))
        return jax.tree.unflatten(structure, leaves), metrics

    return train_step


def kept_init(init: Init, config: ConfigDict, mesh: Mesh, folder: Path) -> Init:
    """The same initialisation, as the program that `folder` holds of it, or now does.

    One that cannot be kept comes back as it is.
    """
    like = jax.eval_shape(jax.random.key_data, jax.eval_shape(jax.random.key, 0))

    def from_data(data: jax.Array) -> Params:
        return init(jax.random.wrap_key_data(data))

    def trace() -> export.Exported:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return export.export(jax.jit(from_data))(like)

    program = _kept("initialisation", like, config, folder, trace)
    if program is None:
        return init
    return lambda key: program.call(jax.random.key_data(key))


def _kept(
    name: str,
    arguments: Any,
    config: ConfigDict,
    folder: Path,
    trace: Callable[[], export.Exported],
) -> export.Exported | None:
    """The program in the folder, which now holds it; None if it cannot be kept."""
    path = folder / program_key(name, config, arguments)
    blob = _read(path)
    if blob is None:
        try:
            blob = bytes(trace().serialize())
        except ValueError:  # an operation that StableHLO does not promise to keep
            return None
        _write(path, blob)
    # What was traced just now is read too, so that all starts compile the same bytes.
    return export.deserialize(bytearray(blob))


def program_key(name: str, config: ConfigDict, arguments: Any) -> str:
    """sha256 of all that the traced program depends on."""
    settings = jax.config.values  # type: ignore[attr-defined]
    made_of = {
        "name": name,
        "source": _source_digest(),
        "versions": versions(*WRITTEN_WITH),
        "settings": {k: repr(v) for k, v in settings.items() if "cache" not in k},
        "config": {key: repr(value) for key, value in flatten(config).items()},
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "arguments": [
            f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape} {leaf.sharding}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(arguments)
        ],
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _source_digest() -> str:
    """Of all of this package: which files a step is made of is not worth knowing."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _trace_step(
    step: TrainStep,
    state: TrainState,
    raw: Mapping[str, Any],
    frozen: Params,
    mesh: Mesh,
) -> export.Exported:
    """The program from and to flat lists, for files know no `TrainState`."""
    leaves, structure = jax.tree.flatten((state, raw, frozen))

    def flat(*leaves: jax.Array) -> tuple[list[jax.Array], StepMetrics]:
        state, metrics = step(*jax.tree.unflatten(structure, leaves))
        return jax.tree.leaves(state), metrics

    jitted = jax.jit(
        flat,
        in_shardings=tuple(leaf.sharding for leaf in leaves),
        out_shardings=(
            [leaf.sharding for leaf in jax.tree.leaves(state)],
            replicated(mesh),
        ),
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return export.export(jitted)(*leaves)


def _read(path: Path) -> bytes | None:
    """The program in a file; None when it is not there or not whole."""
    try:
        kept = path.read_bytes()
    except OSError:
        return None
    sha, blob = kept[:32], kept[32:]
    return blob if sha == hashlib.sha256(blob).digest() else None


def _write(path: Path, blob: bytes) -> None:
    """Behind its sha256; a folder that cannot be written costs the next start time."""
    if not is_main_process():
        return
    with contextlib.suppress(UserError):
        make_folder(path.parent)
        with written_aside(path) as aside:
            aside.write_bytes(hashlib.sha256(blob).digest() + blob)
