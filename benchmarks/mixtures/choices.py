"""What `benchmarks.mixtures` leaves open, tried on the ring with a seed of its own.

  python -m benchmarks.mixtures.choices [NAME ..]

Each variation changes the options of CD from the exact teacher, or of CT, in one place;
its students of 1 and 8 steps are trained and measured, and all rows are written into
docs/truth.md. Without names: all variations.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.documents import replace_between
from benchmarks.mixtures import measures, tables
from benchmarks.mixtures.run import DOCUMENT, ITERATIONS, TEACHER_SHARE
from benchmarks.mixtures.students import (
    EXACT,
    SCHEDULE,
    Problem,
    frozen_values,
    make_problem,
    student_trainer,
    teacher_trainer,
)
from multistep_cm.errors import UserError
from multistep_cm.files import write_text
from multistep_cm.losses.segments import ConsistencyOptions
from multistep_cm.losses.signature import Params

PRESET = "ring"
STUDENT_STEPS = (1, 8)
SEED = 1000
"""Far from those that `benchmarks.mixtures` reports: nothing is chosen on its noise."""


def _grid(start: float, end: float, anneal_steps: int = 0) -> dict[str, Any]:
    return {
        "teacher_steps_start": start,
        "teacher_steps_end": end,
        "anneal_steps": anneal_steps,
    }


class Variation(NamedTuple):
    """Options that differ from `BASE`, and arguments of the trainer."""

    options: Mapping[str, Any]
    trainer: Mapping[str, Any]


BASE = ConsistencyOptions(
    **_grid(64.0, 64.0),
    student_steps=1,
    hop="heun",
    weight="snr_plus_1",
    huber_epsilon=1.0,
)
"""From which every variation departs; CT makes no use of the hop."""

PAPER_HUBER = {"huber_epsilon": 1e-4}
VARIATIONS: Mapping[str, Variation] = {
    "cd": Variation({}, {}),
    "cd_grid_32": Variation(_grid(32.0, 32.0), {}),
    "cd_grid_128": Variation(_grid(128.0, 128.0), {}),
    "cd_huber": Variation(PAPER_HUBER, {}),
    "cd_sqrt_snr_huber": Variation({"weight": "sqrt_snr_plus_1", **PAPER_HUBER}, {}),
    "cd_grid_16_to_64_huber": Variation(
        {**_grid(16.0, 64.0, ITERATIONS), **PAPER_HUBER}, {}
    ),
    "cd_hop_ddim": Variation({"hop": "ddim"}, {}),
    "cd_hop_addim": Variation({"hop": "addim"}, {}),
    "cd_learning_rate_3e-3": Variation({}, {"learning_rate": 3e-3}),
    "ct": Variation({}, {}),
    "ct_huber": Variation(PAPER_HUBER, {}),
    "ct_grid_16_to_256": Variation(_grid(16.0, 256.0, ITERATIONS), {}),
    "ct_grid_16_to_64": Variation(_grid(16.0, 64.0, ITERATIONS), {}),
    "ct_grid_16_to_64_huber": Variation(
        {**_grid(16.0, 64.0, ITERATIONS), **PAPER_HUBER}, {}
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Try the variations asked for; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mixtures.choices",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(VARIATIONS))
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--num_samples", type=int, default=8192)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    given = parser.parse_args(argv)
    try:
        names = given.names or list(VARIATIONS)
        for name in names:
            if name not in VARIATIONS:
                expected = ", ".join(VARIATIONS)
                raise UserError(f"no variation {name!r}; there are: {expected}")
        tables.check_marks(given.document, [tables.CHOICES])
        rows = try_all(names, given.iterations, given.num_samples)
        text = replace_between(
            given.document.read_text(),
            *tables.marks(tables.CHOICES),
            format_rows(rows),
            name=str(given.document),
        )
        write_text(given.document, text)
    except UserError as error:
        print(f"mixtures.choices: {error}", file=sys.stderr)
        return 2
    return 0


def try_all(
    names: Sequence[str], iterations: int, num_samples: int
) -> list[tuple[str, dict[int, dict[str, float]]]]:
    """Each name with its measures for each K."""
    problem = make_problem(PRESET)
    yardstick = measures.make_yardstick(PRESET, SCHEDULE, num_samples, SEED)
    key = jax.random.key(SEED)
    train_teacher = teacher_trainer(problem, TEACHER_SHARE * iterations)
    teacher = train_teacher(problem.initial(key), key, {})
    print("teacher, 256 DDIM steps:", measured(problem, teacher, yardstick, 256))
    rows = []
    for name in names:
        found = {}
        distill = name.startswith("cd")
        options, arguments = VARIATIONS[name]
        train = student_trainer(
            problem,
            dataclasses.replace(BASE, **options),
            distill,
            iterations,
            **arguments,
        )
        for steps in STUDENT_STEPS:
            student = train(teacher, key, frozen_values(EXACT, steps))
            found[steps] = measured(problem, student, yardstick, steps)
            print(name, steps, found[steps], flush=True)
        rows.append((name, found))
    return rows


def measured(
    problem: Problem,
    params: Params,
    yardstick: measures.Yardstick,
    steps: int,
) -> dict[str, float]:
    """The measures of `measure_samples`."""
    return measures.measure_samples(problem.predict, params, SCHEDULE, yardstick, steps)


def format_rows(rows: Sequence[tuple[str, dict[int, dict[str, float]]]]) -> str:
    """One line a variation: map error and sliced Wasserstein distance for each K."""
    header = ["variation", "changes"]
    for steps in STUDENT_STEPS:
        header += [f"map error, K = {steps}", f"sliced Wasserstein, K = {steps}"]
    lines = [header]
    for name, found in rows:
        changes = {**VARIATIONS[name].options, **VARIATIONS[name].trainer}
        line = [name, ", ".join(f"{k}={v}" for k, v in changes.items()) or "nothing"]
        for one in found.values():
            line += [f"{one[k]:.4f}" for k in ("map_error", "sliced_wasserstein")]
        lines.append(line)
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|---" * len(header) + "|")
    return "\n".join(text)


if __name__ == "__main__":
    sys.exit(main())
