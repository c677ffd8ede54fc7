"""What guidance does on the digits: of a diffusion model, and of CD's teacher.

  python -m benchmarks.guidance [--seeds=1,2,3]

The diffusion model of every seed is sampled with each strength of guidance, at all
times and within intervals, and students are distilled from it while it is guided.
Teachers, classifier and the student of no guidance are those of `python -m
benchmarks.tables`, and are trained when they are not there. What is measured is kept;
--only_write writes the tables of it.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax

from benchmarks.documents import replace_between
from benchmarks.tables import students
from benchmarks.tables.run import keep_settings
from benchmarks.tables.students import NOISE_SEED, Settings, Student, single
from multistep_cm.commands.main import split_overrides
from multistep_cm.diffusion.guidance import ALWAYS, Interval
from multistep_cm.errors import UserError
from multistep_cm.evaluation.evaluate import load_reference
from multistep_cm.evaluation.measure import measure
from multistep_cm.evaluation.results import Row
from multistep_cm.files import write_text
from multistep_cm.generation import (
    SamplingOptions,
    balanced_labels,
    compile_generator,
)
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training.teacher import load_ema
from multistep_cm.workdir import read_config

DOCUMENT = Path(__file__).parents[1] / "docs" / "guidance.md"
BEGIN, END = (
    "<!-- results: python -m benchmarks.guidance -->",
    "<!-- end of results -->",
)

Way: TypeAlias = tuple[float, Interval]
"""A scale of guidance and the times that are guided."""

LATE, MIDDLE, EARLY = (0.0, 0.2), (0.2, 0.6), (0.6, 1.0)

TEACHER_WAYS: tuple[Way, ...] = (
    (0.0, ALWAYS),
    *((scale, ALWAYS) for scale in (0.5, 1.0, 2.0, 4.0)),
    *((scale, MIDDLE) for scale in (0.5, 1.0, 2.0, 4.0)),
    (4.0, LATE),
    (4.0, EARLY),
)
STUDENT_WAYS: tuple[Way, ...] = (
    (0.0, ALWAYS),
    (1.0, ALWAYS),
    (2.0, ALWAYS),
    (4.0, ALWAYS),
    (4.0, MIDDLE),
)

COLUMNS: Mapping[str, tuple[str, float, int]] = {
    "frechet_distance": ("1000 x FD, features", 1000, 1),
    "pixel_frechet_distance": ("1000 x FD, pixels", 1000, 1),
    "class_accuracy": ("class accuracy, %", 100, 2),
    "variance_ratio": ("variance ratio", 1, 3),
}
"""Key of a row to its heading, what it is multiplied with, and its digits."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing and write the tables; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guidance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seeds", default="1,2,3", help="of training (default 1,2,3)")
    add("--workdir", type=Path, default=Path("runs/tables"))
    add("--network", default="mlp", help="mlp or unet (default mlp)")
    add("--iterations", type=int, default=800, help="of each student (default 800)")
    add("--num_images", type=int, default=6000, help="measured (default 6000)")
    add("--num_steps", type=int, default=32, help="of the teacher (default 32)")
    add("--student_steps", type=int, default=4, help="of the students (default 4)")
    add("--document", type=Path, default=DOCUMENT, help="where the tables go")
    add("--only_write", action="store_true", help="train and sample nothing")
    try:
        rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        arguments = parser.parse_args(rest)
        seeds = [int(part) for part in arguments.seeds.split(",")]
        settings = Settings(
            arguments.workdir,
            arguments.network,
            arguments.iterations,
            arguments.num_images,
            tuple(sorted(overrides.items())),
        )
        keep_settings(settings)
        if not arguments.only_write:
            cache = settings.workdir.resolve() / "compiled"
            jax.config.update("jax_compilation_cache_dir", str(cache))
            for seed in seeds:
                measure_all(
                    settings, seed, arguments.num_steps, arguments.student_steps
                )
        text = tables(settings, seeds, arguments.num_steps, arguments.student_steps)
        document = arguments.document
        new = replace_between(document.read_text(), BEGIN, END, text, document.name)
        write_text(document, new)
    except (UserError, OSError) as error:
        print(f"guidance: {error}", file=sys.stderr)
        return 2
    print(f"{text}\n\nwrote {document}")
    return 0


def measure_all(
    settings: Settings, seed: int, num_steps: int, student_steps: int
) -> None:
    """Sample the teacher of a seed in every way; train and measure its students."""
    floors_path = settings.workdir / "floors.json"
    if not floors_path.exists():
        write_text(floors_path, json.dumps(students.prepare(settings), indent=2))
    missing = [
        way
        for way in TEACHER_WAYS
        if not _teacher_path(settings, seed, way, num_steps).exists()
    ]
    if missing:
        students.train_teacher(settings, seed)
        measure_teacher(settings, seed, missing, num_steps)
    for way in STUDENT_WAYS:
        row = students.measured_student(settings, _student(way, student_steps), seed)
        _say(f"seed {seed}, student of {_name(way)}", row)


def measure_teacher(
    settings: Settings, seed: int, ways: Sequence[Way], num_steps: int
) -> None:
    """Sample the diffusion model of a seed by DDIM in these ways; keep their rows."""
    folder = students.teacher_folder(settings, seed)
    config = read_config(folder)
    classifier, reference = load_reference(config, settings.workdir / "classifier.npz")
    mesh = make_mesh(config.mesh)
    _, params = load_ema(folder, config, mesh)
    labels = balanced_labels(settings.num_images, config.data.num_classes)
    for scale, interval in ways:
        options = SamplingOptions("ddim", num_steps, scale, "analytic", interval)
        batch_size = min(config.evaluation.batch_size, len(labels))
        generator = compile_generator(config, options, mesh, batch_size)
        images = generator(params, labels, NOISE_SEED)
        row: Row = measure(classifier, reference, images, labels)
        path = _teacher_path(settings, seed, (scale, interval), num_steps)
        write_text(path, json.dumps(row, indent=2) + "\n")
        _say(f"seed {seed}, teacher, {_name((scale, interval))}", row)


def tables(
    settings: Settings, seeds: Sequence[int], num_steps: int, student_steps: int
) -> str:
    """Both tables as Markdown: mean and standard deviation over the seeds.

    Raises OSError when a measurement is missing.
    """
    models: list[tuple[str, Sequence[Way], Any]] = [
        (
            f"diffusion model, {num_steps} steps of DDIM",
            TEACHER_WAYS,
            lambda way, seed: _teacher_path(settings, seed, way, num_steps),
        ),
        (
            f"student of {student_steps} steps, from that teacher",
            STUDENT_WAYS,
            lambda way, seed: (
                _student(way, student_steps).folder(settings.workdir, seed) / "row.json"
            ),
        ),
    ]
    headings = ["guidance", *(heading for heading, _, _ in COLUMNS.values())]
    lines: list[str] = []
    for title, ways, path in models:
        lines += [f"**{title[0].upper()}{title[1:]}**", "", _line(headings)]
        lines.append("|---" * len(headings) + "|")
        for way in ways:
            rows = [json.loads(path(way, seed).read_text()) for seed in seeds]
            lines.append(_line([_name(way), *(_cell(rows, key) for key in COLUMNS)]))
        lines.append("")
    floors = json.loads((settings.workdir / "floors.json").read_text())
    lines.append(
        f"Floors, real images against real images: {1000 * floors['floor']:.1f} in "
        f"features, {1000 * floors['pixel_floor']:.1f} in pixels. Mean ± standard\n"
        f"deviation over {len(seeds)} seeds of training, {settings.num_images} images."
    )
    return "\n".join(lines)


def _student(way: Way, steps: int) -> Student:
    """The student of a guided teacher; of none it is that of the paper's tables."""
    scale, interval = way
    if not scale:
        return single("cd", "cd", steps)
    keys: dict[str, object] = {"consistency__guidance_scale": scale}
    name = f"cd_guided_{scale:g}"
    if interval != ALWAYS:
        keys["consistency__guidance_interval"] = interval
        name += "_{:g}_{:g}".format(*interval)
    return single(name, "cd", steps, **keys)


def _teacher_path(settings: Settings, seed: int, way: Way, num_steps: int) -> Path:
    scale, (low, high) = way
    name = f"row_guided_{scale:g}_{low:g}_{high:g}_ddim_{num_steps}.json"
    return students.teacher_folder(settings, seed) / name


def _name(way: Way) -> str:
    scale, (low, high) = way
    if not scale:
        return "none"
    return f"{scale:g}" + (
        "" if (low, high) == ALWAYS else f", t in {low:g} to {high:g}"
    )


def _cell(rows: Sequence[Row], key: str) -> str:
    _, factor, digits = COLUMNS[key]
    values = [factor * row[key] for row in rows]
    text = f"{statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{digits}f}"
    return text


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _say(what: str, row: Row) -> None:
    print(f"{what}: {_line([_cell([row], key) for key in COLUMNS])}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
