"""The main job on the digits: teacher, students, samples, numbers, pictures.

  python -m benchmarks.quickstart [--workdir=runs/quickstart] [--config.key=value ..]

Trains a diffusion teacher, distils it into students of 8, 4, 2 and 1 steps (CD), trains
a student without a teacher (CT), measures all of them, draws them from the same noise
and makes a page of it, report.html. Runs that are finished are not trained again, so it
can be stopped and started. Overrides are applied to every run.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from ml_collections import ConfigDict

from multistep_cm.commands.main import split_overrides
from multistep_cm.config import load_config
from multistep_cm.data.sources import all_examples, open_source
from multistep_cm.errors import UserError
from multistep_cm.evaluation.evaluate import evaluate_run, load_reference
from multistep_cm.evaluation.results import Row
from multistep_cm.files import write_text
from multistep_cm.generation import SamplingOptions, sampling_options
from multistep_cm.inspection.collect import (
    REPORT_NAME,
    make_report,
    sample_pictures,
    write_report,
)
from multistep_cm.reporting import content
from multistep_cm.reporting.grids import comparison_grid, save_png
from multistep_cm.reporting.tables import format_rows
from multistep_cm.training.loop import train
from multistep_cm.workdir import read_config

CONFIG = Path(__file__).parents[1] / "configs" / "digits.py"
STUDENTS = (("cd", 8), ("cd", 4), ("cd", 2), ("cd", 1), ("ct", 4))
SEED = 1
"""Of the noise that every model starts from."""

TEACHER_WAYS = ("ddim", "addim")
Strip: TypeAlias = tuple[str, np.ndarray]
"""A row of the picture: its name and images, uint8 [columns, ...]."""

RESULT_KEYS = (
    "method",
    "steps",
    "network_calls",
    "frechet_distance",
    "pixel_frechet_distance",
    "class_accuracy",
    "variance_ratio",
    "images_per_second",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the whole job; the exit status."""
    try:
        rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        parser = argparse.ArgumentParser(
            prog="python -m benchmarks.quickstart",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
        return quickstart(parser.parse_args(rest).workdir, overrides)
    except UserError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 2


def quickstart(workdir: Path, overrides: Mapping[str, str]) -> int:
    """Train, measure, draw; 0 when all is done, 1 when it was stopped by SIGTERM."""
    start = time.perf_counter()
    runs = [("teacher", 0), *STUDENTS]
    for stage, steps in runs:
        if not train_stage(workdir, stage, steps, overrides):
            return 1
    rows, floor, strips = measure_all(workdir)
    results = {
        "floor": floor,
        "rows": [{key: row[key] for key in RESULT_KEYS} for row in rows],
    }
    write_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    config = read_config(workdir / "teacher")
    draw(workdir / "samples.png", strips, config)
    write_page(workdir, strips, config)
    print()
    print(format_rows(rows, floor))
    print(f"\nminutes: {(time.perf_counter() - start) / 60:.1f}")
    print(f"table:    {workdir / 'results.json'}")
    print(f"pictures: {workdir / 'samples.png'}")
    print(f"report:   {workdir / REPORT_NAME}")
    return 0


def run_folder(workdir: Path, stage: str, steps: int) -> Path:
    """Where a stage's run lives, such as `workdir/cd4`."""
    return workdir / (f"{stage}{steps}" if steps else stage)


def train_stage(
    workdir: Path, stage: str, steps: int, overrides: Mapping[str, str]
) -> bool:
    """Train one run, or see that it is finished; False when it was stopped."""
    folder = run_folder(workdir, stage, steps)
    # One picture at the end shows all runs: no sample grids on the way.
    given = {"sampling.num_previews": "0", **overrides}
    arguments = f"stage={stage}"
    if steps:
        arguments += f",steps={steps}"
        given["teacher.workdir"] = str(workdir / "teacher")
    print(f"\n== {folder.name}", flush=True)
    return train(load_config(f"{CONFIG}:{arguments}", given), folder)


def measure_all(workdir: Path) -> tuple[list[Row], float | None, list[Strip]]:
    """Every run's rows, teacher first, the floor of the distance, and the pictures."""
    print("\n== measure", flush=True)
    config = read_config(workdir / "teacher")
    classifier, reference = load_reference(config, workdir / "classifier.npz")
    shown = shown_images(config)
    rows: list[Row] = []
    strips = [real_strip(config, shown)]

    def show(row: Row, images: np.ndarray) -> None:
        steps = f"{row['steps']} step{'s' if row['steps'] > 1 else ''}"
        name = row["method"].replace("teacher_", "")
        strips.append((f"{name}, {steps}", images[shown]))

    for folder, ways in all_ways(workdir):
        number = config.evaluation.num_images
        rows += evaluate_run(
            folder, ways, classifier, reference, number, SEED, show=show
        )
    return rows, reference.floor, strips


def all_ways(workdir: Path) -> list[tuple[Path, list[SamplingOptions]]]:
    """Each run's folder and the ways in which it is sampled."""
    teacher = workdir / "teacher"
    config = read_config(teacher)
    ways = [(teacher, [sampling_options(config, method) for method in TEACHER_WAYS])]
    for stage, steps in STUDENTS:
        folder = run_folder(workdir, stage, steps)
        ways.append((folder, [sampling_options(read_config(folder))]))
    return ways


def shown_images(config: ConfigDict, per_class: int = 2) -> np.ndarray:
    """Indices of evaluated images for the picture, class by class."""
    classes = np.repeat(np.arange(config.data.num_classes), per_class)
    turns = np.tile(np.arange(per_class), config.data.num_classes)
    return classes + turns * config.data.num_classes


def real_strip(config: ConfigDict, shown: np.ndarray) -> Strip:
    """Real images of the same classes."""
    images, labels = all_examples(open_source(config.data, config.data.train_split))
    classes, turns = shown % config.data.num_classes, shown // config.data.num_classes
    indices = [
        int(np.flatnonzero(labels == label)[turn])
        for label, turn in zip(classes, turns, strict=True)
    ]
    return "real images", images[indices]


def draw(path: Path, strips: Sequence[Strip], config: ConfigDict) -> None:
    """One row a model, all from the same noise, under a row of real images."""
    names = [str(i % config.data.num_classes) for i in shown_images(config)]
    save_png(path, comparison_grid(strips, column_labels=names))


def write_page(workdir: Path, strips: Sequence[Strip], config: ConfigDict) -> None:
    """The report of all runs, with the pictures that there are already."""
    print("\n== report", flush=True)
    folders = [folder for folder, _ in all_ways(workdir)]
    names = [str(i % config.data.num_classes) for i in shown_images(config)]
    samples = sample_pictures(names, [content.Strip(*strip) for strip in strips])
    write_report(
        workdir / REPORT_NAME, make_report(folders, seed=SEED, samples=samples)
    )


if __name__ == "__main__":
    sys.exit(main())
