"""How long a checkpoint takes as the state grows: `python -m benchmarks.checkpoint`.

Saves and restores states of several sizes, verified as in a run: parameters, their
average and the two moments of Adam. A train loop waits for the call of `save`, which
copies the state off the devices; the rest goes on behind it. The sizes take turns.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.documents import replace_between, split_at_marks
from benchmarks.records import write_record
from multistep_cm.checkpoints import Checkpoints, Trees
from multistep_cm.errors import UserError
from multistep_cm.files import write_text

BEGIN, END = "<!-- begin checkpoint -->", "<!-- end checkpoint -->"
LEAF = 512
"""Rows and columns of a leaf: float32, one MiB."""
PARTS = {"wait": "the loop waits", "save": "save on disk", "restore": "restore"}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the numbers; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sizes", default="16,64,256,1024", help="MiB of state")
    add("--rounds", type=int, default=5)
    add("--folder", type=Path, help="where to save (default: a temporary one)")
    add("--output", type=Path, default=Path("runs/checkpoint.json"))
    add("--document", type=Path, help="file with marks that the table goes between")
    args = parser.parse_args(argv)
    try:
        sizes = parse_sizes(args.sizes)
        if args.rounds < 1:
            raise UserError(f"--rounds is {args.rounds}, expected at least 1")
        if args.document:
            split_at_marks(args.document.read_text(), BEGIN, END, str(args.document))
        seconds = measure(sizes, args.rounds, args.folder)
        text = table(seconds)
        print(text)
        record = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        write_record(
            args.output, {**record, "cores": os.cpu_count(), "seconds": seconds}
        )
        print(f"wrote {args.output}")
        if args.document:
            name, document = str(args.document), args.document.read_text()
            write_text(args.document, replace_between(document, BEGIN, END, text, name))
            print(f"wrote {args.document}")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse_sizes(text: str) -> list[int]:
    """MiB, each at least four and a multiple of it: a leaf for each of four trees."""
    words = text.split(",")
    if not all(word.isdecimal() and int(word) and int(word) % 4 == 0 for word in words):
        raise UserError(f"--sizes is {text!r}, expected multiples of 4 such as 8,32,96")
    return [int(word) for word in words]


def make_state(size: int) -> Trees:
    """So many MiB of normal numbers, a quarter of them parameters."""
    keys = jax.random.split(jax.random.key(0), 4)

    def tree(key: jax.Array) -> dict[str, jax.Array]:
        return {
            f"layer_{number}": jax.random.normal(part, (LEAF, LEAF), jnp.float32)
            for number, part in enumerate(jax.random.split(key, size // 4))
        }

    params, ema, mean, square = map(tree, keys)
    return {"params": params, "ema": ema, "optimizer": {"mu": mean, "nu": square}}


def save_and_restore(folder: Path, trees: Trees) -> dict[str, float]:
    """Seconds by the clock, and CPU-seconds (`.._cpu`), of each of `PARTS`."""
    found: dict[str, float] = {}
    with Checkpoints(folder, keep=1) as manager:
        cpu, begin = time.process_time(), time.perf_counter()
        own = time.thread_time()
        manager.save(1, trees, {}, {})
        found["wait_cpu"] = time.thread_time() - own
        found["wait"] = time.perf_counter() - begin
        manager.wait()
        found["save"] = time.perf_counter() - begin
        found["save_cpu"] = time.process_time() - cpu
        targets = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), trees
        )
        found["restore"], found["restore_cpu"] = _timed(
            lambda: jax.block_until_ready(manager.restore(targets))
        )
    return found


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    cpu, begin = time.process_time(), time.perf_counter()
    call()
    return time.perf_counter() - begin, time.process_time() - cpu


def measure(
    sizes: Sequence[int], rounds: int, folder: Path | None
) -> dict[int, dict[str, list[float]]]:
    """What every size took in every round."""
    seconds: dict[int, dict[str, list[float]]] = {size: {} for size in sizes}
    for number in range(rounds + 1):
        for size in sizes:
            trees = jax.block_until_ready(make_state(size))
            with tempfile.TemporaryDirectory(dir=folder) as name:
                found = save_and_restore(Path(name), trees)
            # The first round compiles and imports.
            for part, value in found.items() if number else ():
                seconds[size].setdefault(part, []).append(value)
    return seconds


def table(seconds: dict[int, dict[str, list[float]]]) -> str:
    """A row for each size; MiB/s by the medians."""
    names = " | ".join(f"{name}, s (least .. most)" for name in PARTS.values())
    lines = [
        f"| state, MiB | {names} | CPU-s of a save | saved MiB/s | restored MiB/s |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for size, taken in seconds.items():
        middle = {part: statistics.median(values) for part, values in taken.items()}
        cells = [
            f"{middle[part]:.2f} ({min(taken[part]):.2f} .. {max(taken[part]):.2f})"
            for part in PARTS
        ]
        cells.append(f"{middle['save_cpu']:.2f}")
        cells += [f"{size / middle[part]:,.0f}" for part in ("save", "restore")]
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
