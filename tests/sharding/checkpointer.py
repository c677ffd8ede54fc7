"""A process that saves and restores, beside others: what `test_pieces.py` starts.

  python -m tests.sharding.checkpointer ADDRESS NUMBER PROCESS ACTION..

An action is `save:CUT:DIR`, `spoil:CUT:DIR`, `restore:CUT:DIR` (which only reads) or
`resume:CUT:DIR` (which may set aside); each says a line. `CUT` is how arrays lie over
all devices: in rows, columns, or whole. `ROWS` and `LEAVES` of the environment set how
large the tree is.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from multistep_cm.checkpoints import Checkpoints, Trees
from multistep_cm.errors import UserError
from multistep_cm.sharding.distributed import ProcessOptions, start_processes
from multistep_cm.sharding.mesh import make_mesh

CUTS: Mapping[str, PartitionSpec] = {
    "rows": PartitionSpec("fsdp"),
    "columns": PartitionSpec(None, "fsdp"),
    "whole": PartitionSpec(),
}
ROWS = int(os.environ.get("ROWS", "64"))
LEAVES = int(os.environ.get("LEAVES", "2"))
COLUMNS = 4096


def values(step: int, leaf: int) -> np.ndarray:
    """float32 [ROWS, COLUMNS], random, so that no compression makes them smaller."""
    rng = np.random.default_rng([step, leaf])
    return rng.standard_normal((ROWS, COLUMNS), np.float32)


def like(cut: str) -> Trees:
    """The shapes of a tree, cut over all devices of all processes."""
    mesh = make_mesh({"data": 1, "fsdp": -1, "tensor": 1})
    where = NamedSharding(mesh, CUTS[cut])
    leaf = jax.ShapeDtypeStruct((ROWS, COLUMNS), np.float32, sharding=where)
    return {"ema": {f"layer{number}": leaf for number in range(LEAVES)}}


def tree(step: int, cut: str) -> Trees:
    """The values, of which each process makes its own part."""
    shapes = like(cut)["ema"]
    return {
        "ema": {
            name: jax.make_array_from_callback(
                shape.shape, shape.sharding, values(step, number).__getitem__
            )
            for number, (name, shape) in enumerate(shapes.items())
        }
    }


def save(cut: str, workdir: Path) -> str:
    """Steps 2 and 4."""
    with Checkpoints(workdir, keep=5) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, tree(step, cut), {"position": step}, {"seed": 0})
    return "saved"


def spoil(cut: str, workdir: Path) -> str:
    """Save a tree with a NaN in the last row, which the last process has alone."""

    bad = values(6, 1)
    bad[-1, -1] = np.nan
    state = tree(6, cut)
    leaf = state["ema"]["layer1"]
    state["ema"]["layer1"] = jax.make_array_from_callback(
        leaf.shape, leaf.sharding, bad.__getitem__
    )
    with Checkpoints(workdir, keep=5) as checkpoints:
        try:
            checkpoints.save(6, state, {"position": 6}, {"seed": 0})
        except FloatingPointError as error:
            return str(error)
    return "saved"


def restore(cut: str, workdir: Path, keep: int | None) -> str:
    """The step, after a look at what this process has of it; or why there is none."""
    before = peak_megabytes()
    with Checkpoints(workdir, keep) as checkpoints:
        try:
            found = checkpoints.restore(like(cut))
        except UserError as error:
            return str(error)
    peak = peak_megabytes() - before
    assert found is not None
    step, trees, data = found
    assert data == {"position": step}
    for number in range(LEAVES):
        leaf = trees["ema"][f"layer{number}"]
        assert leaf.sharding.spec == CUTS[cut]
        expected = values(step, number)
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[shard.index])
    return f"restored {step} with {peak:.0f} MB"


def peak_megabytes() -> float:
    """The most memory that this process has had, on Linux; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return float(peaks[0]) / 1024 if peaks else 0.0


def main(address: str, number: str, process: str, *actions: str) -> None:
    start_processes(
        ProcessOptions(address, int(number), int(process), heartbeat_seconds=10)
    )
    jax.device_put(0).block_until_ready()  # before memory counts
    for action in actions:
        what, cut, folder = action.split(":", 2)
        workdir = Path(folder)
        if what == "save":
            said = save(cut, workdir)
        elif what == "spoil":
            said = spoil(cut, workdir)
        else:
            said = restore(cut, workdir, keep=5 if what == "resume" else None)
        print(f"> {said}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
