"""Sampling with a student of few steps against its teacher with many, in turns.

  python -m benchmarks.sampling [--student_steps=8] [--teacher_steps=256]
      [--images=64] [--rounds=5] [--output=runs/sampling.json] [--document=FILE]

The compiled samplers of `multistep-cm sample`, on the networks of configs/digits.py
with fresh weights: the time does not depend on their values. No ratio can be above
teacher_steps / student_steps, as both call the same network.
"""

import argparse
import importlib.metadata
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax

from benchmarks.documents import replace_between
from benchmarks.records import write_record
from multistep_cm.config import load_config
from multistep_cm.errors import UserError
from multistep_cm.files import write_text
from multistep_cm.generation import (
    balanced_labels,
    compile_generator,
    sampling_options,
)
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup

CONFIG = Path(__file__).parents[1] / "configs" / "digits.py"
MARKS = "<!-- begin sampling -->", "<!-- end sampling -->"
Record: TypeAlias = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the numbers; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sampling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--student_steps", type=int, default=8)
    parser.add_argument("--teacher_steps", type=int, default=256)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="runs/sampling.json")
    parser.add_argument(
        "--document", help="file with marks that the table goes between"
    )
    args = parser.parse_args(argv)
    try:
        sides = {
            "student": make_sampler("cd", args.student_steps, args.images),
            "teacher": make_sampler("teacher", args.teacher_steps, args.images),
        }
        record = {
            "images": args.images,
            "steps": {"student": args.student_steps, "teacher": args.teacher_steps},
            "seconds": measure(sides, args.rounds),
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
            "device": jax.devices()[0].device_kind,
        }
        write_record(Path(args.output), record)
        text = table(record)
        print(f"{text}\nwrote {args.output}")
        if args.document:
            path = Path(args.document)
            write_text(path, replace_between(path.read_text(), *MARKS, text, str(path)))
            print(f"wrote {path}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make_sampler(stage: str, steps: int, images: int) -> Callable[[], object]:
    """All images of one call of a compiled sampler, DDIM with that many steps."""
    is_student = stage != "teacher"
    keys = {"consistency.student_steps": str(steps)} if is_student else {}
    config = load_config(f"{CONFIG}:stage={stage}", keys)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    options = sampling_options(config, "ddim", steps)
    generator = compile_generator(config, options, mesh, images)
    params = setup.init_state(config, mesh, None).params
    labels = balanced_labels(images, config.data.num_classes)
    return lambda: generator(params, labels, seed=0)


def measure(
    sides: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Wall and processor seconds of every round, after one that does not count."""
    seconds: dict[str, dict[str, list[float]]]
    seconds = {name: {"wall": [], "cpu": []} for name in sides}
    for number in range(1 + rounds):
        for name, sample in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            sample()
            if number:
                seconds[name]["cpu"].append(time.process_time() - cpu)
                seconds[name]["wall"].append(time.perf_counter() - wall)
    return seconds


def table(record: Mapping[str, Any]) -> str:
    """Medians with least and most, the ratios of each round, and what made them."""
    head = "| side | network calls | wall s (least .. most) | CPU-s (least .. most) |"
    rows = [head, "|---|---|---|---|"]
    seconds = record["seconds"]
    for name, of in seconds.items():
        cells = [
            name,
            str(record["steps"][name]),
            *(
                f"{statistics.median(s):.3f} ({min(s):.3f} .. {max(s):.3f})"
                for s in (of["wall"], of["cpu"])
            ),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    ratios = {
        kind: statistics.median(
            teacher / student
            for teacher, student in zip(
                seconds["teacher"][kind], seconds["student"][kind], strict=True
            )
        )
        for kind in ("wall", "cpu")
    }
    limit = record["steps"]["teacher"] / record["steps"]["student"]
    return "\n".join(
        [
            *rows,
            "",
            f"The student is {ratios['wall']:.1f} times faster by the clock and "
            f"{ratios['cpu']:.1f} times in CPU-seconds (medians over "
            f"{len(seconds['student']['wall'])} rounds; {limit:g} is the limit). "
            f"{record['images']} images, {record['device']}, jax {record['jax']}, "
            f"jaxlib {record['jaxlib']}.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
