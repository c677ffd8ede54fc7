"""The paper's tables in small, on the digits: trained, measured, written into the docs.

  python -m benchmarks.tables [table1 table2 table3 budget table4 open] [--seeds=1,2,3]

Every student is trained from the teacher of its seed, for the same number of
iterations, and measured on images from the same noise. Distances are 1000 times the
Fréchet distance, mean and standard deviation over the seeds, in the features of the
classifier and in pixels. Finished students are kept: the command goes on where it was
stopped, and --only_write writes the tables of what is there.
"""

import argparse
import concurrent.futures
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax

from benchmarks.documents import replace_between
from benchmarks.tables import students
from benchmarks.tables.layout import TABLES, Table
from benchmarks.tables.students import Settings, Student
from benchmarks.tables.text import Rows, table_text
from multistep_cm.commands.main import split_overrides
from multistep_cm.errors import UserError
from multistep_cm.files import write_text

DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"
TEACHER_METHODS = ("ddim", "addim")

Job: TypeAlias = tuple[Callable[..., str], tuple[Any, ...]]
"""A function that says what it did, and its arguments."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the tables; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("tables", nargs="*", metavar="TABLE", help=f"default: {' '.join(TABLES)}")
    add("--seeds", default="1,2,3", help="of training (default 1,2,3)")
    add("--workdir", type=Path, default=Path("runs/tables"))
    add("--network", default="mlp", help="mlp or unet (default mlp)")
    add("--iterations", type=int, default=800, help="of each student (default 800)")
    add("--num_images", type=int, default=6000, help="measured (default 6000)")
    add("--workers", type=int, default=2, help="runs side by side (default 2)")
    add("--document", type=Path, default=DOCUMENT, help="where the tables go")
    add("--only_write", action="store_true", help="train nothing")
    try:
        rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        arguments = parser.parse_args(rest)
        names = _known(arguments.tables or list(TABLES))
        seeds = _seeds(arguments.seeds)
        settings = Settings(
            arguments.workdir,
            arguments.network,
            arguments.iterations,
            arguments.num_images,
            tuple(sorted(overrides.items())),
        )
        keep_settings(settings)
        if not arguments.only_write:
            run_all(
                settings, [TABLES[name] for name in names], seeds, arguments.workers
            )
        floors = json.loads((settings.workdir / "floors.json").read_text())
        write_tables(settings, names, seeds, floors, arguments.document)
    except (UserError, OSError) as error:
        print(f"tables: {error}", file=sys.stderr)
        return 2
    return 0


def _known(names: list[str]) -> list[str]:
    for name in names:
        if name not in TABLES:
            raise UserError(
                f"there is no table {name!r}; expected: {', '.join(TABLES)}"
            )
    return [name for name in TABLES if name in names]


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds is {text!r}, expected numbers like 1,2,3") from error


def keep_settings(settings: Settings) -> None:
    """Raise UserError when the workdir holds students of other settings."""
    path = settings.workdir / "settings.json"
    text = json.dumps(
        {
            "network": settings.network,
            "iterations": settings.iterations,
            "num_images": settings.num_images,
            "overrides": dict(settings.overrides),
        },
        indent=2,
    )
    if path.exists() and path.read_text() != text:
        raise UserError(
            f"{path} says that the students there were made with other settings: "
            "choose another --workdir or the same settings"
        )
    settings.workdir.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def run_all(
    settings: Settings, tables: Sequence[Table], seeds: Sequence[int], workers: int
) -> None:
    """Train and measure what is missing, row by row, each with all its seeds."""
    # Processes of their own, one core each: several small runs side by side are faster
    # than one with many threads. Spawned, because jax does not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, context, _start_worker, (context.Value("i", 0), settings.workdir)
    )
    with pool:
        floors = pool.submit(students.prepare, settings).result()
        write_text(settings.workdir / "floors.json", json.dumps(floors, indent=2))
        jobs: list[Job] = [(_teacher_job, (settings, seed, 0)) for seed in seeds]
        _finish(pool, "teachers", jobs)
        jobs = [
            (_teacher_job, (settings, seed, steps))
            for seed in seeds
            for steps in sorted({k for table in tables for k in table.teacher})
        ]
        jobs += [
            (_student_job, (settings, student, seed))
            for student, seed in unique_students(tables, seeds)
        ]
        _finish(pool, "measurements", jobs)


def unique_students(
    tables: Sequence[Table], seeds: Sequence[int]
) -> list[tuple[Student, int]]:
    """Every student and seed once, in the order of the tables and their rows."""
    students = (student for table in tables for student in table.students())
    return list(dict.fromkeys(itertools.product(students, seeds)))


def _finish(pool: concurrent.futures.Executor, what: str, jobs: Sequence[Job]) -> None:
    start = time.perf_counter()
    futures = [pool.submit(function, *arguments) for function, arguments in jobs]
    try:
        for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
            minutes = (time.perf_counter() - start) / 60
            line = f"{what} {number}/{len(jobs)}  {minutes:.1f} min  {future.result()}"
            print(line, flush=True)
    except BaseException:
        # What has not begun must not begin; what runs is kept as far as it got.
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _teacher_job(settings: Settings, seed: int, steps: int) -> str:
    """Train a teacher (steps 0), or measure it by every method."""
    if not steps:
        students.train_teacher(settings, seed)
        return f"teacher of seed {seed}"
    for method in TEACHER_METHODS:
        students.measured_teacher(settings, seed, method, steps)
    return f"teacher of seed {seed} in {steps} steps"


def _student_job(settings: Settings, student: Student, seed: int) -> str:
    row = students.measured_student(settings, student, seed)
    name = f"{student.name} K={student.steps} seed {seed}"
    if "diverged" in row:
        return f"{name}: {row['diverged']}"
    return f"{name}: {1000 * row['frechet_distance']:.2f}"


def _start_worker(counter: Any, workdir: Path) -> None:
    """Give each worker a core of its own, where the system can, and share programs."""
    jax.config.update("jax_compilation_cache_dir", str(workdir.resolve() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if hasattr(os, "sched_setaffinity"):
        with counter.get_lock():
            number = counter.value
            counter.value += 1
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})


def collect(settings: Settings, table: Table, seeds: Sequence[int]) -> Rows:
    """What has been measured of a table: (label, steps) to one row for each seed."""
    rows: Rows = {}

    def keep(label: str, steps: int, path: Path) -> None:
        if path.exists():
            rows.setdefault((label, steps), {})[seed] = json.loads(path.read_text())

    for seed in seeds:
        for method in TEACHER_METHODS:
            folder = students.teacher_folder(settings, seed)
            for steps in table.teacher:
                path = folder / f"row_{method}_{steps}.json"
                keep(f"teacher_{method}", steps, path)
        for label, make in table.rows.items():
            for steps in table.columns(label):
                folder = make(steps).folder(settings.workdir, seed)
                keep(label, steps, folder / "row.json")
    return rows


def write_tables(
    settings: Settings,
    names: Sequence[str],
    seeds: Sequence[int],
    floors: Mapping[str, float],
    document: Path,
) -> None:
    """Put the tables between their marks in the document, and print them."""
    text = document.read_text()
    for name in names:
        table = TABLES[name]
        new = table_text(table, collect(settings, table, seeds), floors)
        begin = f"<!-- {name}: python -m benchmarks.tables {name} -->"
        text = replace_between(
            text, begin, f"<!-- end of {name} -->", new, document.name
        )
        print(f"\n{new}")
    write_text(document, text)
    print(f"\nwrote {document}")


if __name__ == "__main__":
    sys.exit(main())
