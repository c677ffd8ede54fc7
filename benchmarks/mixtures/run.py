"""Students trained against truth: the learned map beside the exact one.

  python -m benchmarks.mixtures [--presets two_normals ring] [--iterations N]

For each preset of `multistep_cm/truth/presets.py`, in one and two dimensions: trains a
diffusion model (a small MLP), then students of 1 to 16 steps by CD from the exact
posterior mean, by CD from that MLP, and by CT, all starting from the MLP. Measures the
distance of each learned map to the exact map, and of its samples to the data. Writes
results.json into the workdir, the tables into docs/truth.md and, when two_normals is
among the presets, the picture docs/images/figure1.png.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks.mixtures import figure, measures, tables
from benchmarks.mixtures.students import (
    CD_OPTIONS,
    CT_OPTIONS,
    EXACT,
    SCHEDULE,
    Problem,
    Trainer,
    fitted,
    frozen_values,
    make_problem,
    student_trainer,
    teacher_trainer,
)
from benchmarks.mixtures.tables import Row
from multistep_cm.errors import UserError
from multistep_cm.files import write_text
from multistep_cm.losses.signature import Params

DOCUMENT = Path(__file__).parents[2] / "docs" / "truth.md"
PRESETS = ("two_normals", "ring")
STUDENT_STEPS = (1, 2, 4, 8, 16)
TEACHER_STEPS = (*STUDENT_STEPS, 256)
ITERATIONS = 1500
SEEDS = 3
NUM_SAMPLES = 8192
NUM_PROBES = 4096
TEACHER_SHARE = 5
"""Iterations of the diffusion model for each of a student's."""


class Job(NamedTuple):
    """What the command line asks for."""

    presets: Sequence[str]
    student_steps: Sequence[int]
    iterations: int
    seeds: int
    num_samples: int


class Laboratory(NamedTuple):
    """What all seeds of a preset share: the truth, and compiled trainers."""

    problem: Problem
    yardstick: measures.Yardstick
    probes: Mapping[int, measures.Probe]
    train_teacher: Trainer
    train_cd: Trainer
    train_ct: Trainer


class Student(NamedTuple):
    """A trained student, or a teacher sampled with `steps` steps."""

    method: str
    steps: int
    seed: int
    params: Params


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure, write; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mixtures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--presets", nargs="+", default=list(PRESETS), metavar="NAME")
    add("--student_steps", nargs="+", type=int, default=list(STUDENT_STEPS))
    add("--iterations", type=int, default=ITERATIONS, help="of each student")
    add("--seeds", type=int, default=SEEDS, help="independent repetitions")
    add("--num_samples", type=int, default=NUM_SAMPLES)
    add("--workdir", type=Path, default=Path("runs/mixtures"))
    add("--document", type=Path, default=DOCUMENT, help="whose tables are rewritten")
    add("--no_document", action="store_true", help="leave document and picture alone")
    given = parser.parse_args(argv)
    job = Job(
        given.presets,
        given.student_steps,
        given.iterations,
        given.seeds,
        given.num_samples,
    )
    try:
        check(job)
        run(job, given.workdir, None if given.no_document else given.document)
    except UserError as error:
        print(f"mixtures: {error}", file=sys.stderr)
        return 2
    return 0


def check(job: Job) -> None:
    """UserError for the first value that makes no job."""
    for name in job.presets:
        if name not in PRESETS:
            expected = ", ".join(PRESETS)
            raise UserError(f"--presets has {name!r}, expected some of: {expected}")
    for flag in ("iterations", "seeds", "num_samples"):
        if getattr(job, flag) < 1:
            raise UserError(f"--{flag} is {getattr(job, flag)}, expected at least 1")
    if min(job.student_steps) < 1:
        raise UserError(
            f"--student_steps has {min(job.student_steps)}, expected at least 1 each"
        )


def run(job: Job, workdir: Path, document: Path | None) -> None:
    """The whole job; `document` None leaves the docs alone.

    Raises UserError before any work when the document cannot take the tables.
    """
    start = time.perf_counter()
    if document is not None:
        tables.check_marks(document, job.presets)
    workdir.mkdir(parents=True, exist_ok=True)
    laboratories = {preset: open_laboratory(preset, job) for preset in job.presets}
    rows: dict[str, list[Row]] = {preset: [] for preset in job.presets}
    for seed in range(job.seeds):
        for preset, laboratory in laboratories.items():
            print(f"\n== {preset}, seed {seed}", flush=True)
            drawn = {}
            for student in train_seed(laboratory, job, seed):
                rows[preset].append(measure(laboratory, student))
                print(tables.one_line(rows[preset][-1]), flush=True)
                if student.method == "cd_exact":
                    drawn[student.steps] = student.params
            if preset == figure.PRESET and seed == 0:
                picture = workdir / "figure1.png"
                figure.draw(picture, laboratory.problem, drawn)
                if document is not None:
                    tables.copy_picture(picture, document)
        # After each seed: a job that is stopped leaves those that it has.
        results = {
            preset: tables.preset_result(rows[preset], laboratory.yardstick)
            for preset, laboratory in laboratories.items()
        }
        minutes = (time.perf_counter() - start) / 60
        written = {"job": job._asdict(), "minutes": minutes, "presets": results}
        write_text(workdir / "results.json", json.dumps(written, indent=1) + "\n")
        if document is not None:
            tables.write_tables(document, results)
    print(f"results: {workdir / 'results.json'}")
    print(f"minutes: {minutes:.1f}")


def open_laboratory(preset: str, job: Job) -> Laboratory:
    """The truth about a preset solved, and its trainers made; nothing is trained."""
    problem = make_problem(preset)
    probes = {
        steps: measures.make_probe(
            preset,
            SCHEDULE,
            steps,
            CD_OPTIONS.teacher_steps_end,
            min(NUM_PROBES, job.num_samples),
        )
        for steps in job.student_steps
    }
    cd, ct = (fitted(options, job.iterations) for options in (CD_OPTIONS, CT_OPTIONS))
    return Laboratory(
        problem,
        measures.make_yardstick(preset, SCHEDULE, job.num_samples),
        probes,
        teacher_trainer(problem, TEACHER_SHARE * job.iterations),
        student_trainer(problem, cd, True, job.iterations),
        student_trainer(problem, ct, False, job.iterations),
    )


def train_seed(laboratory: Laboratory, job: Job, seed: int) -> Iterator[Student]:
    """Teachers and students of one seed, each as soon as it is trained."""
    if seed == 0:
        for steps in teacher_steps(job):
            yield Student("exact_ddim", steps, seed, EXACT)
    init_key, teacher_key, key = jax.random.split(jax.random.key(seed), 3)
    fresh = laboratory.problem.initial(init_key)
    teacher = laboratory.train_teacher(fresh, teacher_key, {})
    for steps in teacher_steps(job):
        yield Student("mlp_ddim", steps, seed, teacher)
    ways: list[tuple[str, Trainer, Params]] = [
        ("cd_exact", laboratory.train_cd, EXACT),
        ("cd_mlp", laboratory.train_cd, teacher),
        ("ct", laboratory.train_ct, EXACT),  # CT does not read it
    ]
    for method, train, teacher_params in ways:
        for steps in job.student_steps:
            frozen = frozen_values(teacher_params, steps)
            yield Student(method, steps, seed, train(teacher, key, frozen))


def teacher_steps(job: Job) -> list[int]:
    """With how many steps the teachers are sampled: every K, and many."""
    return [*job.student_steps, TEACHER_STEPS[-1]]


def measure(laboratory: Laboratory, student: Student) -> Row:
    """All measures of one student or teacher, as a row of results.json."""
    predict = laboratory.problem.predict
    row: Row = {
        "method": student.method,
        "steps": student.steps,
        "seed": student.seed,
        **measures.measure_samples(
            predict, student.params, SCHEDULE, laboratory.yardstick, student.steps
        ),
    }
    if student.steps in laboratory.probes:
        row["segment_error"] = measures.segment_error(
            predict, student.params, SCHEDULE, laboratory.probes[student.steps]
        )
    return row


if __name__ == "__main__":
    sys.exit(main())
