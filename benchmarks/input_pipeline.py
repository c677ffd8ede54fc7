"""Whether the data keeps up: `python -m benchmarks.input_pipeline`.

Images a second of the very iterator that feeds training: decoded, batched, moved to the
device, `data.prefetch` batches ahead. Made-up JPEG files of ImageNet's size at 64 and
128 pixels, and the cached digits, for several numbers of threads. Beside them what
steps need: the paper's runs, and any run whose images/s you give with --need.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import jax
from ml_collections import ConfigDict

from benchmarks.reading import SHAPE, pictures
from benchmarks.records import write_record
from multistep_cm.config import default_config
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup

PAPER = {"paper, S, CD on 64 TPU v5e, each of 8 hosts": 2.5 * 2048 / 8}
"""What a host of the paper's runs takes: images a second (2.5 steps/s of 2048)."""

FILES = 64
Row: TypeAlias = dict[str, float | int | str]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the numbers; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=16, help="timed, of each row")
    parser.add_argument("--need", type=float, help="images/s of a step, for the table")
    parser.add_argument("--output", default="runs/input_pipeline.json")
    args = parser.parse_args(argv)
    rows = list(measure(args.threads, args.sizes, args.batch, args.batches))
    needs = {"--need": args.need} if args.need else PAPER
    print(table(rows, needs))
    record = {"cores": os.cpu_count(), "jax": jax.__version__, "rows": rows}
    write_record(Path(args.output), record)
    print(f"wrote {args.output}")
    return 0


def measure(
    threads: Sequence[int], sizes: Sequence[int], batch: int, batches: int
) -> Iterator[Row]:
    """A row for each source and number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        images = pictures(FILES)
        for index, image in enumerate(images):
            Path(folder, f"{index}.jpg").write_bytes(image)
        for number in threads:
            for size in sizes:
                config = folder_config(folder, size, batch, number)
                name = f"JPEG of {SHAPE[1]}x{SHAPE[0]} to {size} pixels"
                yield timed(name, config, batches)
            config = default_config()
            config.training.batch_size, config.data.num_threads = batch, number
            yield timed("digits, cached", config, batches)


def folder_config(folder: str, size: int, batch: int, threads: int) -> ConfigDict:
    """A run on this folder without classes."""
    config = default_config()
    values = {
        "data.name": "folder",
        "data.directory": folder,
        "data.evaluation_split": config.data.train_split,
        "data.num_classes": 0,
        "data.cache": False,
        "data.image_size": size,
        "data.channels": 3,
        "data.num_threads": threads,
        "training.batch_size": batch,
    }
    config.update_from_flattened_dict(values)
    return config


def timed(name: str, config: ConfigDict, batches: int) -> Row:
    """Take batches as the loop does and count; what was made ahead is taken first."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    data = setup.open_data(config, mesh)
    try:
        for _ in range(config.data.num_threads + config.data.prefetch):
            jax.block_until_ready(next(data))
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(batches):
            jax.block_until_ready(next(data))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    finally:
        data.close()
    images = batches * config.training.batch_size
    return {
        "source": name,
        "threads": int(config.data.num_threads),
        "images": images,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
    }


def table(rows: Sequence[Row], needs: dict[str, float]) -> str:
    """A row for each measurement; then what steps need, in cores of this machine."""
    lines = [
        "| source | threads | images/s | images a CPU-s |",
        "|---|---|---|---|",
    ]
    fastest: dict[str, float] = {}
    for row in rows:
        images, source = float(row["images"]), str(row["source"])
        by_wall = images / float(row["wall_seconds"])
        by_cpu = images / float(row["cpu_seconds"])
        fastest[source] = max(fastest.get(source, 0.0), by_cpu)
        lines.append(
            f"| {source} | {row['threads']} | {by_wall:,.0f} | {by_cpu:,.0f} |"
        )
    lines.append("")
    for name, need in needs.items():
        cores = ", ".join(
            f"{need / rate:.1f} cores for {source}" for source, rate in fastest.items()
        )
        lines.append(f"Needed by {name}: {need:,.0f} images/s, or {cores}.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
