"""The cost of a CD step as batch, images, network and steps of the student grow.

  python -m benchmarks.growth [--axes=batch,..] [--rounds=5] [--output=runs/growth]

On one device, but along the axis of devices: those that are there, on a CPU eight that
are simulated. They share its cores, so that their CPU-seconds are those of their work
and of what it takes to split it. The sizes of an axis take their steps in turns: what
else the machine does meets all alike. Writes `growth.json` and `growth.png`.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks.documents import replace_between, split_at_marks
from benchmarks.growth.axes import DEVICES, Axis, axes, make_config
from benchmarks.growth.picture import draw
from benchmarks.records import write_record
from multistep_cm.errors import UserError
from multistep_cm.files import write_text
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from multistep_cm.training.speed import flops_per_image

BEGIN, END = "<!-- begin growth -->", "<!-- end growth -->"

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
    parser.add_argument(
        "--document", type=Path, help="file with marks that the tables go between"
    )
    args = parser.parse_args(argv)
    results: dict[str, list[Row]] = {}
    try:
        for name in args.axes.split(","):
            if name not in known:
                raise UserError(f"--axes has {name!r}, expected some of {list(known)}")
        if args.rounds < 1:
            raise UserError(f"--rounds is {args.rounds}, expected at least 1")
        if args.document:
            split_at_marks(args.document.read_text(), BEGIN, END, str(args.document))
        if DEVICES in args.axes.split(","):
            simulate_devices()
        for name in args.axes.split(","):
            results[name] = measure(known[name], args.rounds)
            print(table(known[name], results[name]), flush=True)
        device = jax.devices()[0].device_kind
        record = {"device": device, "jax": jax.__version__, "axes": results}
        write_record(args.output / "growth.json", record)
        draw(results, args.output / "growth.png")
        print(f"wrote growth.json and growth.png in {args.output}")
        if args.document:
            text = "\n".join(table(known[name], rows) for name, rows in results.items())
            document, title = args.document.read_text(), str(args.document)
            new = replace_between(document, BEGIN, END, text.strip(), title)
            write_text(args.document, new)
            print(f"wrote {args.document}")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def simulate_devices() -> None:
    """Eight of a CPU. One that waits for another holds a thread of the pool, which
    without the flag could be the one that the other needs."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
    jax.config.update("jax_num_cpu_devices", 8)


def measure(axis: Axis, rounds: int) -> list[Row]:
    """A row for each size: CPU-seconds of its steps, compile time, FLOPs."""
    rows, steps = [], []
    compiled: Any = None
    for size, changes in zip(axis.sizes, axis.changes, strict=True):
        config, devices = make_config(changes), size if axis.on_devices else 1
        if devices > jax.device_count():
            break
        mesh = make_mesh(config.mesh, jax.devices()[:devices])
        start = time.perf_counter()
        if compiled is None or axis.recompiles:
            compiled = compile_for(config, mesh)
        rows.append(
            {
                "size": size,
                "compile_seconds": time.perf_counter() - start,
                "flops": flops_per_image(config, mesh) * config.training.batch_size,
                "cpu_seconds": [],
            }
        )
        steps.append(make_step(config, mesh, compiled))
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


def compile_for(config: ConfigDict, mesh: Mesh) -> Any:
    """The train step."""
    state = setup.init_state(config, mesh, None)
    return setup.build_step(config, mesh, setup.freeze(config, mesh, state.params))


def make_step(config: ConfigDict, mesh: Mesh, compiled: Any) -> Callable[[], None]:
    """A function that takes one step and waits for it."""
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
