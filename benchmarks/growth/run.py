"""The cost of a CD step as batch, images, network and steps of the student grow.

  python -m benchmarks.growth [--axes=batch,..] [--rounds=5] [--output=runs/growth]

On one device. The sizes of an axis take their steps in turns, and CPU-seconds count, so
that what else the machine does meets all alike. Writes `growth.json` and `growth.png`.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.growth.axes import Axis, axes, make_config
from benchmarks.growth.picture import draw
from multistep_cm.errors import UserError
from multistep_cm.files import write_text
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from multistep_cm.training.speed import flops_per_image

Row: TypeAlias = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the numbers and the picture; the exit status."""
    known = axes()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--axes", default=",".join(known), help="separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/growth"))
    args = parser.parse_args(argv)
    results: dict[str, list[Row]] = {}
    try:
        for name in args.axes.split(","):
            if name not in known:
                raise UserError(f"--axes has {name!r}, expected some of {list(known)}")
        for name in args.axes.split(","):
            results[name] = measure(known[name], args.rounds)
            print(table(known[name], results[name]), flush=True)
        args.output.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    draw(results, args.output / "growth.png")
    device = jax.devices()[0].device_kind
    record = {"device": device, "jax": jax.__version__, "axes": results}
    write_text(args.output / "growth.json", json.dumps(record, indent=2) + "\n")
    print(f"wrote growth.json and growth.png in {args.output}")
    return 0


def measure(axis: Axis, rounds: int) -> list[Row]:
    """A row for each size: CPU-seconds of its steps, compile time, FLOPs."""
    rows, steps = [], []
    compiled: Any = None
    for size, changes in zip(axis.sizes, axis.changes, strict=True):
        config = make_config(changes)
        start = time.perf_counter()
        if compiled is None or axis.recompiles:
            compiled = compile_for(config)
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        rows.append(
            {
                "size": size,
                "compile_seconds": time.perf_counter() - start,
                "flops": flops_per_image(config, mesh) * config.training.batch_size,
                "cpu_seconds": [],
            }
        )
        steps.append(make_step(config, compiled))
    for number in range(rounds + 1):
        for row, step in zip(rows, steps, strict=True):
            step()  # what the others have pushed out of the caches comes back
            start = time.process_time()
            step()
            if number:
                row["cpu_seconds"].append(time.process_time() - start)
    for row in rows:
        row["median"] = statistics.median(row["cpu_seconds"])
    return rows


def compile_for(config: ConfigDict) -> Any:
    """The train step on the first device."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state = setup.init_state(config, mesh, None)
    return setup.build_step(config, mesh, setup.freeze(config, mesh, state.params))


def make_step(config: ConfigDict, compiled: Any) -> Callable[[], None]:
    """A function that takes one step and waits for it."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    states = [setup.init_state(config, mesh, None)]
    teacher = jax.tree.map(jnp.copy, states[0].params)
    frozen = setup.freeze(config, mesh, teacher)
    like = setup.abstract_batch(config, mesh)
    pixels = np.random.default_rng(0).integers(256, size=like["image"].shape)
    batch = {
        "image": jax.device_put(pixels.astype(np.uint8), like["image"].sharding),
        "label": jax.device_put(
            np.zeros(like["label"].shape, np.int32), like["label"].sharding
        ),
    }

    def step() -> None:
        state, metrics = compiled(states.pop(), batch, frozen)
        states.append(jax.block_until_ready(state))
        jax.block_until_ready(metrics)

    return step


def table(axis: Axis, rows: Sequence[Row]) -> str:
    """A row for each size, with the growth since the one before."""
    lines = [
        f"| {axis.name} | GFLOPs a step | CPU-s a step (least .. most) "
        "| times the one before | FLOPs alone | GFLOP/s |",
        "|---|---|---|---|---|---|",
    ]
    before: Row | None = None
    for row in rows:
        seconds = row["cpu_seconds"]
        cells = [
            f"{row['size']}",
            f"{row['flops'] / 1e9:,.1f}",
            f"{row['median']:.3f} ({min(seconds):.3f} .. {max(seconds):.3f})",
            f"{row['median'] / before['median']:.2f}" if before else "",
            f"{row['flops'] / before['flops']:.2f}" if before else "",
            f"{row['flops'] / row['median'] / 1e9:,.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
        before = row
    return "\n".join(lines) + "\n"
