"""The train step of a config on the devices that are here, for several batches.

  python -m benchmarks.accelerator [--config=FILE:ARGUMENTS] [--batches=64,128,256]
      [--steps=20] [--config.KEY=VALUE ..]

For every batch: images/s, model FLOP/s and their share of the fastest bfloat16 matrix
product that was measured just before, memory, compile time. Steps run as a train loop
dispatches them, a few ahead of the device. A batch that does not fit is said to be so,
and the larger ones are left out. Pixels are noise: no data is read.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks.records import write_record
from multistep_cm.commands.arguments import whole
from multistep_cm.commands.main import split_overrides
from multistep_cm.config import load_config
from multistep_cm.errors import UserError
from multistep_cm.planning.making import with_teacher
from multistep_cm.training import setup
from multistep_cm.training.loop import MAX_IN_FLIGHT
from multistep_cm.training.speed import flops_per_image

SPECIFICATION = "configs/imagenet64.py:size=S,stage=cd"
WARM_UP = 3
Row: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Peak:
    """The fastest product of two square bfloat16 matrices of one device.

    Attributes:
        size: of the matrices.
        flops: a second.
    """

    size: int
    flops: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the numbers; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default=SPECIFICATION)
    parser.add_argument("--batches", default="64,128,256", help="ascending, global")
    parser.add_argument("--steps", type=whole(1), default=20, help="that are timed")
    parser.add_argument(
        "--peak_size", type=whole(1), default=8192, help="of the matrices"
    )
    parser.add_argument("--output", default="runs/accelerator.json")
    try:
        rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        args = parser.parse_args(rest)
        batches = parse_batches(args.batches)
        peak = measure_peak(args.peak_size)
        rows = measure_all(args.config, overrides, batches, args.steps, peak)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(args.config, rows, peak))
    record = {"config": args.config, "overrides": overrides, "batches": rows}
    record |= {"peak": dataclasses.asdict(peak), "jax": jax.__version__}
    record |= {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}
    write_record(Path(args.output), record)
    print(f"wrote {args.output}")
    return 0


def parse_batches(words: str) -> list[int]:
    """Whole numbers above 0, in ascending order; UserError for anything else."""
    parts = words.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--batches is {words!r}, expected whole numbers: 64,128,256")
    return sorted({int(part) for part in parts})


def measure_peak(size: int, repeats: int = 10) -> Peak:
    """Products one after another, each with the result of the one before."""
    key = jax.random.key(0)
    a = jax.random.normal(key, (size, size), jnp.bfloat16) / size**0.5
    multiply = jax.jit(jnp.matmul)
    fastest = float("inf")
    for _ in range(3):
        b = jax.block_until_ready(multiply(a, a))
        begin = time.perf_counter()
        for _ in range(repeats):
            b = multiply(a, b)
        jax.block_until_ready(b)
        fastest = min(fastest, (time.perf_counter() - begin) / repeats)
    return Peak(size, 2 * size**3 / fastest)


def measure_all(
    specification: str,
    overrides: Mapping[str, str],
    batches: Sequence[int],
    steps: int,
    peak: Peak,
) -> list[Row]:
    """A row for each batch, up to the first that does not fit."""
    rows: list[Row] = []
    for batch in batches:
        values = {**overrides, "training.batch_size": str(batch)}
        config = with_teacher(load_config(specification, values))
        mesh = setup.check_config(config, jax.devices())
        try:
            rows.append(measure(config, mesh, steps, peak))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            rows.append({"batch": batch, "fits": False})
            break
    return rows


def measure(config: ConfigDict, mesh: Mesh, steps: int, peak: Peak) -> Row:
    """Compile, warm up, time."""
    state = setup.init_state(config, mesh, None)
    frozen = setup.freeze(config, mesh, jax.tree.map(jnp.copy, state.params))
    begin = time.perf_counter()
    compiled = setup.build_step(config, mesh, frozen)
    compile_seconds = time.perf_counter() - begin
    batch = make_batch(config, mesh)
    pending: list[Any] = []

    def advance(count: int) -> None:
        nonlocal state
        for _ in range(count):
            if len(pending) >= MAX_IN_FLIGHT:
                jax.block_until_ready(pending.pop(0))
            state, metrics = compiled(state, batch, frozen)
            pending.append(metrics)
        jax.block_until_ready(state)

    advance(WARM_UP)
    begin = time.perf_counter()
    advance(steps)
    seconds = (time.perf_counter() - begin) / steps
    size = config.training.batch_size
    flops = flops_per_image(config, mesh) * size
    return {
        "batch": size,
        "fits": True,
        "seconds_per_step": seconds,
        "images_per_second": size / seconds,
        "flops_per_step": flops,
        "share_of_peak": flops / seconds / (peak.flops * mesh.size),
        "compile_seconds": compile_seconds,
        **memory(compiled, mesh.devices.flat[0]),
    }


def make_batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.Array]:
    """Noise in the shapes of the config's data, on the devices."""
    rng = np.random.default_rng(0)
    batch = {}
    for key, like in setup.abstract_batch(config, mesh).items():
        most = 256 if key == "image" else 2
        values = rng.integers(most, size=like.shape).astype(like.dtype)
        batch[key] = jax.device_put(values, like.sharding)
    return batch


def memory(compiled: Any, device: jax.Device) -> Row:
    """Bytes of one device: by the compiler, and the most in use where it counts."""
    found = compiled.memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes
    by_compiler = kept - found.alias_size_in_bytes + found.temp_size_in_bytes
    counted = device.memory_stats() or {}
    return {
        "compiler_bytes": by_compiler,
        "most_bytes_in_use": counted.get("peak_bytes_in_use"),
    }


def table(specification: str, rows: Sequence[Row], peak: Peak) -> str:
    """A row for each batch, and what it was measured on."""
    lines = [
        "| batch | ms a step | images/s | model TFLOP/s | share of measured peak "
        "| memory, GiB | compiled in |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if not row["fits"]:
            lines.append(f"| {row['batch']} | does not fit | | | | | |")
            continue
        rate = row["flops_per_step"] / row["seconds_per_step"]
        used = row["most_bytes_in_use"] or row["compiler_bytes"]
        lines.append(
            f"| {row['batch']} | {1e3 * row['seconds_per_step']:.1f} "
            f"| {row['images_per_second']:.1f} | {rate / 1e12:.3g} "
            f"| {row['share_of_peak']:.0%} | {used / 2**30:.2f} "
            f"| {row['compile_seconds']:.0f} s |"
        )
    device = jax.devices()[0].device_kind
    return "\n".join(
        [
            *lines,
            "",
            f"{specification}; {jax.device_count()} x {device}, jax {jax.__version__}. "
            f"Peak: {peak.flops / 1e12:.3g} TFLOP/s of a device, a bfloat16 product of "
            f"{peak.size}x{peak.size}. FLOPs are ours, nothing computed twice.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
