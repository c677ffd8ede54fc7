"""The students of the paper's tables in small: what each is, trained and measured.

A student is a chain of phases: the first phase's teacher is the diffusion model, every
later one's is the phase before. All students of a table see the same number of training
images: a chain divides the iterations over its phases.
"""

import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multistep_cm.config import load_config
from multistep_cm.errors import UserError
from multistep_cm.evaluation.evaluate import evaluate_run, load_reference
from multistep_cm.evaluation.features import Classifier
from multistep_cm.evaluation.measure import Reference
from multistep_cm.evaluation.results import Row
from multistep_cm.files import write_text
from multistep_cm.generation import SamplingOptions, sampling_options
from multistep_cm.training.loop import TrainingDivergedError, train
from multistep_cm.workdir import read_config

CONFIG = Path(__file__).parents[2] / "configs" / "digits.py"
NOISE_SEED = 1
"""Of the images that are measured; the same in every row."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all students have in common.

    Attributes:
        workdir: holds a folder for every seed.
        network: of `configs/digits.py`.
        iterations: optimizer steps of a student, all phases together.
        num_images: measured images of each student.
        overrides: config keys of every run, teachers included.
    """

    workdir: Path
    network: str
    iterations: int
    num_images: int
    overrides: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Phase:
    """One run: a stage of the config, its steps, and config keys of its own."""

    stage: str
    steps: int
    changes: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Student:
    """A named chain of phases that ends with `steps` steps.

    `budget` multiplies the iterations that all students of the tables have.
    """

    name: str
    steps: int
    phases: tuple[Phase, ...]
    budget: int = 1

    def folder(self, workdir: Path, seed: int) -> Path:
        """Of its runs, one folder a phase."""
        return workdir / f"seed{seed}" / f"{self.name}_k{self.steps}"


def single(name: str, stage: str, steps: int, **changes: Any) -> Student:
    """A student of one phase; two underscores in a key stand for a dot."""
    keys = tuple((key.replace("__", "."), str(v)) for key, v in changes.items())
    return Student(name, steps, (Phase(stage, steps, keys),))


def halving(name: str, steps: int, start: int, first_hop: str, hop: str) -> Student:
    """Progressive distillation from `start` steps down to `steps`, a phase a count.

    `first_hop` is that of the diffusion model, `hop` of the students after it.
    """
    counts = [start]
    while counts[-1] > steps:
        counts.append(counts[-1] // 2)
    hops = [first_hop] + [hop] * (len(counts) - 1)
    phases = (
        Phase("progressive", count, (("consistency.hop", which),))
        for count, which in zip(counts, hops, strict=True)
    )
    return Student(name, steps, tuple(phases))


def tract(name: str, steps: int, grid: int, middle: int) -> Student:
    """TRACT in two phases: `grid` -> `middle` -> `steps`."""

    def phase(start: int, end: int) -> Phase:
        keys = ("consistency.teacher_steps_start", "consistency.teacher_steps_end")
        return Phase("tract", end, tuple((key, str(float(start))) for key in keys))

    return Student(name, steps, (phase(grid, middle), phase(middle, steps)))


def teacher_folder(settings: Settings, seed: int) -> Path:
    """The run of the diffusion model of a seed."""
    return settings.workdir / f"seed{seed}" / "teacher"


def train_teacher(settings: Settings, seed: int) -> None:
    """Train the diffusion model of a seed, or see that it is finished."""
    folder = teacher_folder(settings, seed)
    arguments = f"stage=teacher,network={settings.network}"
    keys = {"seed": str(seed), "sampling.num_previews": "0", **dict(settings.overrides)}
    _train_logged(f"{CONFIG}:{arguments}", keys, folder)


def train_student(settings: Settings, student: Student, seed: int) -> Path:
    """Train every phase that is not finished; the folder of the last."""
    teacher = teacher_folder(settings, seed)
    iterations = student.budget * settings.iterations // len(student.phases)
    for index, phase in enumerate(student.phases):
        folder = student.folder(settings.workdir, seed) / f"phase{index}"
        arguments = f"stage={phase.stage},network={settings.network}"
        config = f"{CONFIG}:{arguments},steps={phase.steps}"
        keys = {
            "seed": str(seed),
            "training.num_steps": str(iterations),
            # As large a share of a short phase as of a long one.
            "training.warmup_steps": str(iterations // 8),
            "consistency.anneal_steps": str(iterations),
            "checkpoint.every_steps": str(iterations),
            "checkpoint.keep": "1",
            "sampling.num_previews": "0",
            "teacher.workdir": str(teacher),
            **dict(settings.overrides),
            **dict(phase.changes),
        }
        _train_logged(config, keys, folder)
        teacher = folder
    return teacher


def measured_student(settings: Settings, student: Student, seed: int) -> Row:
    """The row of a student: from its file, or by training and measuring it now.

    A training that diverges is a result too: its row says so under `diverged`.
    """
    folder = student.folder(settings.workdir, seed)
    path = folder / "row.json"
    if path.exists():
        row: Row = json.loads(path.read_text())
        return row
    try:
        last = train_student(settings, student, seed)
        options = sampling_options(read_config(last))
        (row,) = _measure(settings, last, [options])
    except TrainingDivergedError as error:
        row = {"diverged": str(error)}
    row |= {"name": student.name, "train_seed": seed}
    write_text(path, json.dumps(row, indent=2) + "\n")
    # What is measured is not needed again, and a hundred runs would fill a disk.
    for phase in folder.glob("phase*"):
        shutil.rmtree(phase / "checkpoints", ignore_errors=True)
    return row


def measured_teacher(settings: Settings, seed: int, method: str, num_steps: int) -> Row:
    """The row of the diffusion model, sampled by `method` in `num_steps` steps."""
    folder = teacher_folder(settings, seed)
    path = folder / f"row_{method}_{num_steps}.json"
    if path.exists():
        row: Row = json.loads(path.read_text())
        return row
    train_teacher(settings, seed)
    options = sampling_options(read_config(folder), method, num_steps)
    (row,) = _measure(settings, folder, [options])
    row |= {"name": f"teacher_{method}", "train_seed": seed}
    write_text(path, json.dumps(row, indent=2) + "\n")
    return row


def prepare(settings: Settings) -> dict[str, float | None]:
    """Train the classifier that measures all rows; the floors of both distances."""
    _, reference = _reference(settings)
    return {"floor": reference.floor, "pixel_floor": reference.pixel_floor}


def _measure(
    settings: Settings, folder: Path, ways: list[SamplingOptions]
) -> list[Row]:
    with _log(folder):
        classifier, reference = _reference(settings)
        return evaluate_run(
            folder, ways, classifier, reference, settings.num_images, NOISE_SEED
        )


@functools.cache
def _reference(settings: Settings) -> tuple[Classifier | None, Reference]:
    """What all rows are measured by, made once in a process."""
    arguments = f"stage=teacher,network={settings.network}"
    config = load_config(f"{CONFIG}:{arguments}", dict(settings.overrides))
    return load_reference(config, settings.workdir / "classifier.npz")


def _train_logged(config: str, keys: Mapping[str, str], folder: Path) -> None:
    loaded = load_config(config, keys)
    folder.mkdir(parents=True, exist_ok=True)
    with _log(folder):
        finished = train(loaded, folder)
    if not finished:
        raise UserError(f"{folder} was stopped; the same command continues")


@contextlib.contextmanager
def _log(folder: Path) -> Any:
    """What is printed goes to `folder/log.txt`: several runs share one terminal."""
    with (
        (folder / "log.txt").open("a") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield
