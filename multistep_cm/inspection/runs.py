"""What the files of a workdir say of its run, and what they do not."""

import dataclasses
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from multistep_cm.config import flatten
from multistep_cm.errors import UserError
from multistep_cm.evaluation.results import (
    EVALUATION_NAME,
    main_decay,
    read_results,
)
from multistep_cm.files import is_folder, read_text
from multistep_cm.reporting.content import Measured, Missing, Run
from multistep_cm.reporting.curves import as_number
from multistep_cm.reporting.metrics import METRICS_FILE, read_jsonl
from multistep_cm.training.finite import SKIPPED
from multistep_cm.training.methods import METHODS
from multistep_cm.training.setup import OVERVIEW_NAME
from multistep_cm.workdir import CONFIG_NAME, override_config, read_config


@dataclasses.dataclass(frozen=True)
class Workdir:
    """One run as its files tell it; nothing is drawn yet.

    Attributes:
      path: the folder, as it was named.
      config: of the run.
      run: what a report shows of it.
      measured: its numbers; no rows when it was not evaluated.
      missing: what its files do not hold.
    """

    path: Path
    config: ConfigDict
    run: Run
    measured: Measured
    missing: Sequence[Missing]

    @property
    def is_student(self) -> bool:
        """Whether it jumps whole segments."""
        return METHODS[self.config.method].is_student


def read_workdirs(paths: Sequence[Path], overrides: Mapping[str, str]) -> list[Workdir]:
    """Every run, in the order given, each folder once.

    `overrides` are config keys that say where it is sampled, such as the mesh.
    Raises UserError for a folder that does not exist or is no workdir, and for an
    `evaluation.json` that is none.
    """
    paths = list({path.resolve(): path for path in paths}.values())
    names = short_names(paths)
    return [
        _read_workdir(path, name, overrides)
        for path, name in zip(paths, names, strict=True)
    ]


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all of them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def read_measured(workdir: Path, name: str) -> Measured:
    """The numbers of a run; no rows when there is no `evaluation.json`.

    Raises UserError for a file of another form.
    """
    values = read_results(workdir)
    rows, ema_decay = values.pop("rows"), main_decay(values)
    values.pop("config", None)  # a report shows that of the run
    return Measured(name, rows, values, ema_decay)


def teachers_beside(
    workdirs: Sequence[Workdir],
) -> tuple[list[Measured], list[Missing]]:
    """Numbers of teachers that are not among the runs but are still where they were,
    and what is said of the others."""
    known = {workdir.path.resolve() for workdir in workdirs}
    found, missing = [], []
    for workdir in workdirs:
        path = Path(workdir.config.teacher.workdir or workdir.path)
        if path.resolve() in known:
            continue
        known.add(path.resolve())
        measured = read_measured(path, f"{path.name} (teacher)")
        if measured.rows:
            found.append(measured)
        else:
            what = f"the teacher {path} of {workdir.path} has no numbers, so no line"
            help_line = evaluate_command(path) if is_folder(path) else ""
            missing.append(Missing(what, help_line))
    return found, missing


def newest_step(workdir: Path) -> int | None:
    """The last step that was saved; None without checkpoints."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if is_folder(folder) else []
    return max((int(name) for name in names if name.isdecimal()), default=None)


def command(name: str, *words: str) -> str:
    """A command line that can be pasted."""
    return shlex.join(["multistep-cm", name, *words])


def train_command(workdir: Path) -> str:
    """Trains the run of a workdir, or goes on with it."""
    return command("train", f"--config={workdir / CONFIG_NAME}", f"--workdir={workdir}")


def evaluate_command(workdir: Path, *words: str) -> str:
    """Measures the run of a workdir."""
    return command("evaluate", f"--workdir={workdir}", *words)


def _read_workdir(path: Path, name: str, overrides: Mapping[str, str]) -> Workdir:
    config = override_config(read_config(path), overrides)
    metrics = _read_metrics(path / METRICS_FILE)
    measured = read_measured(path, name)
    missing = []
    if not metrics:
        missing.append(Missing(f"{path} holds no {METRICS_FILE}, so no losses"))
    if not measured.rows:
        what = f"{path} holds no {EVALUATION_NAME}, so no numbers: evaluate it"
        missing.append(Missing(what, evaluate_command(path)))
    run = Run(name, _facts(path, config, metrics), flatten(config), metrics)
    return Workdir(path, config, run, measured, missing)


def _facts(
    path: Path, config: ConfigDict, metrics: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """What to know of a run before its curves."""
    method, data, training = config.method, config.data, config.training
    if METHODS[method].is_student:
        steps = config.consistency.student_steps
        kind = f"{method}, a student of {steps} step{'s' if steps > 1 else ''}"
    else:
        kind = f"{method}, a diffusion model"
    classes = f", {data.num_classes} classes" if data.num_classes else ""
    size = f"{data.image_size}x{data.image_size}x{data.channels}"
    step, last = newest_step(path), metrics[-1]["step"] if metrics else None
    rate, mfu = (_median(metrics, name) for name in ("images_per_second", "mfu"))
    facts = {
        "method": kind,
        "workdir": str(path),
        "data": f"{data.name}, {size}{classes}",
        "network": f"{config.model.name}{_parameters(path)}",
        "trained": f"{last or 0:,} of {training.num_steps:,} steps, "
        f"batch {training.batch_size:,}",
        "newest checkpoint": "none" if step is None else f"step {step:,}",
    }
    if config.teacher.workdir:
        facts["teacher"] = config.teacher.workdir
    loss = as_number(metrics[-1].get("loss")) if metrics else None
    if loss is not None:
        facts["last loss"] = f"{loss:.4g}"
    skipped = as_number(metrics[-1].get(SKIPPED)) if metrics else None
    if skipped:
        facts["skipped steps"] = f"{skipped:,.0f} whose loss or gradient was not finite"
    if rate is not None:
        reached = "" if mfu is None else f", MFU {mfu:.1%}"
        facts["speed of training"] = f"{rate:,.0f} images/s{reached} (medians)"
    return facts


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a run; none where there is no such file."""
    try:
        return read_jsonl(path)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _median(metrics: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [as_number(row.get(name)) for row in metrics]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _parameters(path: Path) -> str:
    """The total of `parameters.txt`, where there is one."""
    overview = path / OVERVIEW_NAME
    try:
        text = read_text(overview)
    except (OSError, ValueError):
        text = ""
    found = re.search(r"Total: ([\d,]+)", text)
    return f", {found[1]} parameters" if found else ""
