"""A report of workdirs: what their files hold, what they draw, how to repeat it."""

import dataclasses
import datetime
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from multistep_cm import provenance
from multistep_cm.errors import UserError
from multistep_cm.files import write_text
from multistep_cm.inspection.pictures import (
    Drawn,
    draw,
    image_names,
    measured_ways,
    real_strip,
)
from multistep_cm.inspection.runs import (
    Workdir,
    command,
    evaluate_command,
    newest_step,
    read_workdirs,
    teachers_beside,
    train_command,
)
from multistep_cm.reporting.content import Missing, Pictures, Report, Strip
from multistep_cm.reporting.curves import TEACHER
from multistep_cm.reporting.progress import progress
from multistep_cm.reporting.report import render

REPORT_NAME = "report.html"


def make_report(
    paths: Sequence[Path],
    num_images: int = 10,
    seed: int = 0,
    overrides: Mapping[str, str] = MappingProxyType({}),
    samples: Pictures | None = None,
) -> Report:
    """Read the runs, draw them and say how they are made again.

    Args:
      paths: workdirs.
      num_images: images of each way of sampling; 0 draws nothing.
      seed: of their noise.
      overrides: config keys that say where they are sampled, such as the mesh.
      samples: pictures that are there already; only trajectories are drawn then.

    What a workdir does not hold is said in `Report.missing`.
    Raises UserError for a folder that is no workdir.
    """
    workdirs = read_workdirs(paths, overrides)
    teachers, unknown = teachers_beside(workdirs)
    missing = [item for workdir in workdirs for item in workdir.missing] + unknown
    drawn: dict[str, Drawn] = {}
    if num_images:
        drawn, failed = _draw_all(workdirs, num_images, seed, samples is None)
        missing += failed
    if samples is None:
        samples = _samples(workdirs, drawn, num_images)
    runs = [
        dataclasses.replace(
            workdir.run, trajectories=drawn[workdir.run.name].trajectories
        )
        if workdir.run.name in drawn
        else workdir.run
        for workdir in workdirs
    ]
    names = (
        ", ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    )
    now = datetime.datetime.now(datetime.UTC)
    versions = provenance.versions("jax", "flax", "numpy")
    commit = provenance.git_commit()
    return Report(
        title=f"Multistep consistency models: {names}",
        made=f"Made on {now:%Y-%m-%d at %H:%M} UTC.",
        runs=runs,
        measured=[*(w.measured for w in workdirs), *teachers],
        samples=samples,
        missing=missing,
        commands=_commands(workdirs),
        versions={
            **versions,
            "python": platform.python_version(),
            **({"commit": commit} if commit else {}),
        },
    )


def write_report(path: Path, report: Report) -> None:
    """Write the page; readers see the old one or the new one."""
    write_text(path, render(report))


def _draw_all(
    workdirs: Sequence[Workdir], num_images: int, seed: int, with_samples: bool
) -> tuple[dict[str, Drawn], list[Missing]]:
    """The pictures of every run that has weights, by its name, and why others have
    none."""
    steps = {workdir.run.name: newest_step(workdir.path) for workdir in workdirs}
    able = [w for w in workdirs if steps[w.run.name] is not None]
    failed = [
        Missing(f"{w.path} holds no checkpoint, so no images", train_command(w.path))
        for w in workdirs
        if steps[w.run.name] is None
    ]
    total = sum(len(measured_ways(w)) if with_samples else 1 for w in able)
    drawn = {}
    with progress("drawing", total) as bar:
        for workdir in able:
            try:
                drawn[workdir.run.name] = draw(
                    workdir, num_images, seed, with_samples, bar.advance
                )
            except UserError as error:
                failed.append(Missing(f"{workdir.path} was not drawn: {error}"))
            if not with_samples:
                bar.advance()
    return drawn, failed


def _samples(
    workdirs: Sequence[Workdir], drawn: Mapping[str, Drawn], num_images: int
) -> Pictures | None:
    """All strips of images of one size, those of the first run, under real ones."""
    strips = [strip for one in drawn.values() for strip in one.samples]
    if not strips:
        return None
    config = next(w.config for w in workdirs if w.run.name in drawn)
    strips = [s for s in strips if s.images.shape == strips[0].images.shape]
    real = real_strip(config, num_images)
    heads = image_names(config, np.arange(num_images) % max(config.data.num_classes, 1))
    return sample_pictures(
        heads if config.data.num_classes else (),
        [*([real] if real else []), *strips],
    )


def sample_pictures(heads: Sequence[str], strips: Sequence[Strip]) -> Pictures:
    """Strips of one noise under their classes."""
    caption = (
        "Each column starts from the same noise and is asked for the same class, so "
        "models can be compared image by image."
    )
    return Pictures(caption, [head.removeprefix("class ") for head in heads], strips)


def _commands(workdirs: Sequence[Workdir]) -> list[str]:
    """Teachers first: train, then measure, then this page."""
    ordered = sorted(workdirs, key=lambda workdir: workdir.is_student)
    lines = ["# Into new folders it trains anew; in these it sees that all is done."]
    lines += [train_command(workdir.path) for workdir in ordered]
    lines += [line for workdir in ordered for line in _evaluations(workdir)]
    words = [f"--workdir={workdir.path}" for workdir in workdirs]
    output = [f"--output={REPORT_NAME}"] if len(workdirs) > 1 else []
    return [*lines, command("report", *words, *output)]


def _evaluations(workdir: Workdir) -> list[str]:
    """The commands that made a run's rows: one for all rows that differ in steps."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in workdir.measured.rows:
        words = []
        if not workdir.is_student:
            words.append(f"--sampler={str(row.get('method')).removeprefix(TEACHER)}")
        if row.get("fid") is not None:
            others = "" if row.get("frechet_distance") is None else "classifier,"
            words += [f"--features={others}inception", "--inception_weights=FILE"]
        if row.get("ema_decay") not in (None, workdir.measured.ema_decay):
            words.append(f"--ema_decay={row['ema_decay']}")
        if row.get("guidance_scale"):
            words.append(f"--guidance_scale={row['guidance_scale']:g}")
        if row.get("guidance_interval"):
            times = ",".join(map(str, row["guidance_interval"]))
            words.append(f"--config.sampling.guidance_interval=({times})")
        if row.get("x_variance", "analytic") != "analytic":
            words.append(f"--x_variance={row['x_variance']}")
        words += [f"--{key}={row[key]}" for key in ("num_images", "seed") if key in row]
        groups.setdefault(tuple(words), []).append(str(row.get("steps")))
    return [
        evaluate_command(workdir.path, f"--num_steps={','.join(steps)}", *words)
        for words, steps in groups.items()
    ]
