"""A run's sampler as a file that needs jax alone; its weights in safetensors.

The file holds the whole sampler, from a seed and labels to images, as StableHLO for
several platforms and any batch size (`jax.export`). On one device its images are, bit
for bit, those that `generation.Generator` draws in batches of the same size.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import save_file

from multistep_cm import factory, provenance
from multistep_cm.diffusion.samplers import XVariance
from multistep_cm.errors import UserError
from multistep_cm.files import write_text, written_aside
from multistep_cm.generation import SamplingOptions, make_generate
from multistep_cm.losses.signature import Params

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""What jax can compile for; a file serves any of those that it was made for."""

SAMPLER_NAME = "sampler.jaxexport"
WEIGHTS_NAME = "weights.safetensors"
DESCRIPTION_NAME = "export.json"

LARGEST_PROGRAM = 2**31 - 2**24
"""Bytes of parameters that fit into a program: its format counts in 31 bits."""

TEXT_MEANING = {
    "text": "UTF-8 bytes or embeddings of captions, as data.text in the config says",
    "text_mask": "True where the caption is; all False is no caption",
}

Weights: TypeAlias = dict[str, np.ndarray]
"""Parameters by their path, such as "embedding/time_in/kernel"."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What the file is for: its platforms, and whether it holds the parameters."""

    platforms: tuple[str, ...]
    baked: bool = True


@dataclasses.dataclass(frozen=True)
class WeightsSource:
    """Which weights these are: after how many steps, and the average of which decay."""

    step: int
    ema_decay: float


def flatten_params(params: Params) -> Weights:
    """The leaves of nested dicts, on this host, by their keys joined with "/"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): np.asarray(v) for path, v in leaves}


def unflatten_params(weights: Mapping[str, Any]) -> Params:
    """The inverse of `flatten_params`."""
    params: Params = {}
    for name, leaf in weights.items():
        *folders, last = name.split("/")
        inner = params
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = leaf
    return params


def portable_config(config: ConfigDict) -> dict[str, Any]:
    """The config without the folders of this machine, to be given to others."""
    portable: dict[str, Any] = config.to_dict()
    portable["data"]["directory"] = portable["teacher"]["workdir"] = ""
    return portable


def check_size(params: Params) -> None:
    """Raise UserError when these (or their shapes) are too large for a program."""
    leaves = jax.tree.leaves(params)
    size = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
    if size > LARGEST_PROGRAM:
        raise UserError(
            f"the parameters take {size / 2**30:.1f} GiB, more than the 2 GiB that a "
            "program can hold: use --weights=beside"
        )


def export_sampler(
    config: ConfigDict,
    options: SamplingOptions,
    weights: Weights,
    to: ExportOptions,
    x_variance: XVariance | None = None,
) -> export.Exported:
    """The sampler of `options` for any batch size b and all platforms of `to`.

    It is called as `(seed, first, labels)` with seed and first uint32 [] and labels
    int32 [b]; of a model of captions as `(seed, first, text, text_mask)`, in the shapes
    of `factory.text_shapes`, after labels if it has classes too. It gives the images
    number first .. first + b - 1 of that seed, uint8 [b, height, width, channels];
    unless the weights are baked in, they come first.
    Raises UserError when they are baked in and too large.
    """
    generate = make_generate(config, options, x_variance)

    def sampler(
        weights: Mapping[str, Any],
        seed: jax.Array,
        first: jax.Array,
        *arrays: jax.Array,
    ) -> jax.Array:
        indices = first + jnp.arange(arrays[0].shape[0], dtype=jnp.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
        wanted = dict(zip(shapes_of_wanted, arrays, strict=True))
        no_label = jnp.zeros(arrays[0].shape[0], jnp.int32)
        return generate(unflatten_params(weights), keys, {"label": no_label, **wanted})

    (batch,) = export.symbolic_shape("b")
    shapes_of_wanted = wanted_shapes(config, batch)
    number = jax.ShapeDtypeStruct((), jnp.uint32)
    inputs: list[Any] = [number, number, *shapes_of_wanted.values()]
    if to.baked:
        check_size(weights)
        function = jax.jit(functools.partial(sampler, weights))
    else:
        shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in weights.items()}
        function, inputs = jax.jit(sampler), [shapes, *inputs]
    with _no_folder_names():
        return export.export(function, platforms=to.platforms)(*inputs)


def wanted_shapes(config: ConfigDict, batch: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What a sampler is told of images, in the order of its arguments."""
    texts = factory.text_shapes(config.data, (batch,))
    if texts and not config.data.num_classes:
        return texts
    return {"label": jax.ShapeDtypeStruct((batch,), jnp.int32), **texts}


@contextlib.contextmanager
def _no_folder_names() -> Iterator[None]:
    """Keep the folders of this machine out of the program's source locations."""
    name = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, name)
    jax.config.update(name, "^.*/")
    try:
        yield
    finally:
        jax.config.update(name, before)


def write_weights(
    path: Path, weights: Weights, source: WeightsSource, config: ConfigDict
) -> None:
    """Write a safetensors file whose header also says which weights, and the config."""
    metadata = {
        "format": "np",
        "train_step": str(source.step),
        "ema_decay": str(source.ema_decay),
        "config": json.dumps(portable_config(config), sort_keys=True),
    }
    with written_aside(path) as aside:
        try:
            save_file(weights, aside, metadata)
        except SafetensorError as error:
            raise UserError(f"{path} cannot be written: {error}") from error


def write_export(
    folder: Path,
    exported: export.Exported,
    weights: Weights,
    to: ExportOptions,
    description: Mapping[str, Any],
    source: WeightsSource,
    config: ConfigDict,
) -> list[Path]:
    """Write the program, the weights if they go beside it, and what they are."""
    sampler_path, weights_path = folder / SAMPLER_NAME, folder / WEIGHTS_NAME
    with written_aside(sampler_path) as aside:
        aside.write_bytes(exported.serialize())
    paths = [sampler_path]
    if to.baked:
        # Of an earlier export: it would not belong to this program.
        weights_path.unlink(missing_ok=True)
    else:
        write_weights(weights_path, weights, source, config)
        paths.append(weights_path)
    digests = {path.name: _sha256(path) for path in paths}
    text = json.dumps({**description, "sha256": digests}, indent=2)
    write_text(folder / DESCRIPTION_NAME, text + "\n")
    return [*paths, folder / DESCRIPTION_NAME]


def describe(
    config: ConfigDict,
    options: SamplingOptions,
    exported: export.Exported,
    to: ExportOptions,
    source: WeightsSource,
) -> dict[str, Any]:
    """What `export.json` says: how to call the program, and where it came from."""
    classes = config.data.num_classes
    meaning = f"0 to {classes - 1}; {classes} is no class" if classes else "ignored"
    inputs = {
        "weights": f"the arrays of {WEIGHTS_NAME} by name",
        "seed": "uint32 []",
        "first": "uint32 [], the number of the first image of this seed",
        "labels": f"int32 [b], {meaning}",
    }
    for key, like in factory.text_shapes(config.data, ("b",)).items():
        shape = ", ".join(map(str, like.shape))
        inputs[key] = f"{like.dtype} [{shape}], {TEXT_MEANING[key]}"
    if "label" not in wanted_shapes(config, 1):
        del inputs["labels"]
    if to.baked:
        del inputs["weights"]
    (output,) = exported.out_avals
    return {
        "sampler": SAMPLER_NAME,
        "weights": None if to.baked else WEIGHTS_NAME,
        "platforms": list(exported.platforms),
        "call": f"jax.export.deserialize(bytearray).call({', '.join(inputs)})",
        "inputs": inputs,
        "output": f"{output.dtype} [{', '.join(map(str, output.shape))}]",
        "train_step": source.step,
        "ema_decay": source.ema_decay,
        **dataclasses.asdict(options),
        "network_calls": options.network_calls,
        "git_commit": provenance.git_commit(),
        "versions": provenance.versions("jax", "jaxlib", "numpy"),
        "calling_convention_version": exported.calling_convention_version,
        "config": portable_config(config),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
