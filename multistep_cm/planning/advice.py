"""What to change in a config that does not fit, found by compiling it changed."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm.errors import UserError
from multistep_cm.planning.compiling import Compilation, gib
from multistep_cm.sharding.mesh import data_parallel_size

Changes = dict[str, Any]
"""Config keys to values."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A changed config, and whether it fits.

    Attributes:
        changes: config keys to their new values.
        used_bytes: of one device; at least so much when it does not fit.
    """

    changes: Changes
    fits: bool
    used_bytes: int | None
    compile_seconds: float

    @property
    def flags(self) -> str:
        """The changes as they are written on a command line."""
        return " ".join(
            f"--config.{key}={value}" for key, value in self.changes.items()
        )


def search(
    config: ConfigDict,
    mesh: Mesh,
    refused: Compilation,
    check: Callable[[ConfigDict], Mesh],
    compile_changed: Callable[[ConfigDict, Mesh], Compilation],
    announce: Callable[[str], None],
) -> list[Attempt]:
    """Compile one changed config after another until one fits; all that were tried.

    `refused` is what became of the config itself. `check` gives a config's mesh and
    raises UserError for one that cannot run; such changes are passed over. So are
    numbers of parts that cannot be enough: twice the parts need half of the memory at
    best.
    """
    attempts: list[Attempt] = []
    least_parts = config.training.accumulation * _excess(refused)
    for changes in alternatives(config, mesh):
        parts = changes.get("training.accumulation")
        changed = apply(config, changes)
        if parts is not None and parts < least_parts:
            continue
        try:
            changed_mesh = check(changed)
        except UserError:
            continue
        flags = Attempt(changes, False, None, 0.0).flags
        announce(f"trying {flags} ..")
        result = compile_changed(changed, changed_mesh)
        attempts.append(
            Attempt(changes, result.fits, result.used_bytes, result.seconds)
        )
        announce(f"  {said(result)}")
        if result.fits:
            break
        least_parts = changed.training.accumulation * _excess(result)
    return attempts


def _excess(refused: Compilation) -> float:
    """At least so many times too much; 1 when that is not known."""
    if refused.used_bytes is None or refused.usable_bytes is None:
        return 1.0
    return refused.used_bytes / refused.usable_bytes


def said(result: Compilation) -> str:
    """What became of a compilation, in a few words."""
    seconds = f"in {result.seconds:.0f} s"
    if result.used_bytes is None:
        return f"{'compiled' if result.fits else 'refused'} {seconds}"
    needs = gib(result.used_bytes)
    if result.fits:
        return f"compiled {seconds}: needs {needs} of each device"
    return f"refused {seconds}: needs at least {needs} of each device"


def alternatives(config: ConfigDict, mesh: Mesh) -> Iterator[Changes]:
    """Changes that leave the trained numbers alone, each on top of those before it.

    In the order of what they cost: parameters cut over all devices (more to send),
    blocks computed again in the backward pass (a forward pass more), the batch in
    2, 4, 8 .. parts (the parameters sent for each), down to one example a device.
    """
    changes: Changes = {}
    sizes = dict(mesh.shape)
    if sizes["fsdp"] * sizes["tensor"] < mesh.size:
        changes |= {"mesh.data": 1, "mesh.fsdp": -1}
        yield dict(changes)
    if config.model.remat != "full":
        changes["model.remat"] = "full"
        yield dict(changes)
    training = config.training
    parts = 2 * training.accumulation
    while parts * data_parallel_size(mesh) <= training.batch_size:
        changes["training.accumulation"] = parts
        yield dict(changes)
        parts *= 2


def apply(config: ConfigDict, changes: Changes) -> ConfigDict:
    """A copy of the config with the changes."""
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(changes)
    return changed
