"""Measure runs against the data they were trained on, and keep the numbers.

  multistep-cm evaluate --workdir=runs/cd4
  multistep-cm evaluate --workdir=runs/teacher --num_steps=8,32,128 --sampler=ddim,addim
  multistep-cm evaluate --workdir runs/teacher runs/cd4 runs/cd1 --num_steps=1,2,4,8
  multistep-cm evaluate --workdir=runs/cd4 --ema_decay=0.99,0.999,0.9999
  multistep-cm evaluate --workdir=runs/cd8 --num_images=50000 --features=inception \\
      --inception_weights=weights-inception-2015-12-05-6726825d.pth

Fréchet distance in the features of a classifier that is trained on the data (made once,
kept in DIR/classifier.npz), its floor (real images against real images), accuracy of
the classes, and the variance of the pixels. With --features=inception: FID, sFID,
Inception Score, precision and recall, as docs/evaluation.md defines them. Each row goes
to DIR/evaluation.json as soon as it is measured, and what was measured with the same
settings of the same weights is not measured again: a call that was stopped goes on.
Among several runs a student is measured at its own number of steps.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multistep_cm.commands.arguments import (
    MOST_IMAGES,
    MOST_STEPS,
    as_number,
    as_path,
    as_seed,
    whole,
)
from multistep_cm.commands.processes import add_process_arguments, start
from multistep_cm.errors import UserError

if TYPE_CHECKING:  # `--help` does not wait for JAX
    from ml_collections import ConfigDict

    from multistep_cm.evaluation.fid_setup import FidOptions, FidSource
    from multistep_cm.evaluation.results import Row
    from multistep_cm.generation import SamplingOptions

STOPPED = "rows measured so far are kept; the same command goes on"
"""Said when SIGTERM ends it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate`."""
    add = parser.add_argument
    add(
        "--workdir",
        required=True,
        type=as_path,
        nargs="+",
        action="extend",
        metavar="DIR",
        help="a trained run; say it again, or name more, to measure several",
    )
    add("--num_steps", help="step counts, such as 8,32,128 (default: the run's own)")
    add("--sampler", help="samplers, such as ddim,addim (default: the run's own)")
    add(
        "--ema_decay",
        metavar="DECAYS",
        help="averages of the weights, such as 0.99,0.9999, or all: those that the run "
        "tracks (training.more_ema_decays); default: the main one",
    )
    add("--guidance_scale", type=as_number, help="default: the run's own")
    add(
        "--x_variance",
        choices=("analytic", "measured"),
        help="what the sampler addim puts back: 0.1 / (2 + SNR), or measured on data",
    )
    add(
        "--num_images",
        type=whole(2, MOST_IMAGES),
        help="default: evaluation.num_images of the run",
    )
    add("--seed", type=as_seed, default=0, help="of the starting noise (default 0)")
    add("--again", action="store_true", help="measure anew what was measured before")
    add(
        "--classifier",
        type=as_path,
        metavar="FILE.npz",
        help="where the classifier is kept (default: the first DIR/classifier.npz)",
    )
    add(
        "--features",
        default="classifier",
        help="classifier (the default), inception (FID), or both: classifier,inception",
    )
    add("--inception_weights", type=as_path, metavar="FILE", help="of the FID network")
    add(
        "--reference",
        type=as_path,
        metavar="FILE.npz",
        help="mu and sigma of the real images (default: measure the training split)",
    )
    add(
        "--write_reference",
        type=as_path,
        metavar="FILE.npz",
        help="keep what was measured of the training split",
    )
    add_process_arguments(parser)


@dataclasses.dataclass(frozen=True)
class Task:
    """One run and what to measure of it."""

    workdir: Path
    config: "ConfigDict"
    ways: "Sequence[SamplingOptions]"
    num_images: int
    ema_decays: Sequence[float | None] = (None,)

    @property
    def data(self) -> str:
        """What tells its data from that of others: they share a reference."""
        how_read = ("bad_record_fraction", "cache", "num_threads", "prefetch")
        values = self.config.data.to_dict()
        return json.dumps({key: values[key] for key in values if key not in how_read})


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Evaluate, print the tables, write the files."""
    start(arguments, overrides)
    from multistep_cm.evaluation.fid_setup import FidSource
    from multistep_cm.evaluation.results import EVALUATION_NAME
    from multistep_cm.reporting.averages import best_decays
    from multistep_cm.reporting.tables import format_rows
    from multistep_cm.sharding.agreement import together
    from multistep_cm.sharding.distributed import say

    tasks = together(lambda: check(arguments, overrides))
    groups = [
        [task for task in tasks if task.data == data]
        for data in dict.fromkeys(task.data for task in tasks)
    ]
    options = together(lambda: [check_fid(arguments, group) for group in groups])
    for group, chosen in zip(groups, options, strict=True):
        fid = None if chosen is None else FidSource(group[0].config, chosen)
        if fid is not None and arguments.write_reference is not None:
            _ = fid.meter  # writes it, though all rows may be there
        rows, floor = measure_group(arguments, overrides, group, fid)
        say(format_rows(rows, floor, with_decay=arguments.ema_decay is not None))
        for sentence in best_decays(rows):
            say(sentence)
        for task in group:
            say(f"wrote {task.workdir / EVALUATION_NAME}")
    return 0


def measure_group(
    arguments: argparse.Namespace,
    overrides: Mapping[str, str],
    group: Sequence[Task],
    fid: "FidSource | None",
) -> "tuple[list[Row], float | None]":
    """The rows of runs on the same data, with their names, and the data's floor."""
    from multistep_cm.evaluation.evaluate import evaluate_run, load_reference
    from multistep_cm.inspection.runs import short_names
    from multistep_cm.sharding.mesh import make_mesh

    classifier = reference = None
    if "classifier" in arguments.features.split(","):
        path = arguments.classifier or group[0].workdir / "classifier.npz"
        mesh = make_mesh(group[0].config.mesh)
        classifier, reference = load_reference(group[0].config, path, mesh)
    rows: list[Row] = []
    names = short_names([task.workdir for task in group])
    for task, name in zip(group, names, strict=True):
        found = evaluate_run(
            task.workdir,
            task.ways,
            classifier,
            reference,
            task.num_images,
            arguments.seed,
            overrides,
            fid=fid,
            resume=not arguments.again,
            ema_decays=task.ema_decays,
        )
        label = {"run": name} if len(group) > 1 else {}
        rows += [label | row for row in found]
    return rows, None if reference is None else reference.floor


def check(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> list[Task]:
    """What to measure of each run.

    Raises UserError for all that can be known to be wrong before anything is paid for.
    """
    classifier = arguments.classifier
    if classifier is not None and classifier.suffix != ".npz":
        raise UserError(f"--classifier is {classifier}, expected a name ending in .npz")
    workdirs = {path.resolve(): path for path in arguments.workdir}
    tasks = []
    for workdir in workdirs.values():
        try:
            tasks.append(_task(workdir, arguments, overrides, len(workdirs) > 1))
        except UserError as error:
            named = len(workdirs) == 1 or str(workdir) in str(error)
            raise UserError(str(error) if named else f"{workdir}: {error}") from error
    others = [task for task in tasks if task.data != tasks[0].data]
    for name in ("classifier", "reference", "write_reference"):
        if others and getattr(arguments, name) is not None:
            raise UserError(
                f"--{name} is for runs on the same data, but {tasks[0].workdir} and "
                f"{others[0].workdir} differ in data.*: evaluate them one by one"
            )
    return tasks


def _task(
    workdir: Path,
    arguments: argparse.Namespace,
    overrides: Mapping[str, str],
    among_others: bool,
) -> Task:
    from multistep_cm.evaluation.results import read_results
    from multistep_cm.sharding.mesh import make_mesh
    from multistep_cm.training.teacher import check_checkpoint
    from multistep_cm.validation import validate
    from multistep_cm.workdir import override_config, read_config

    config = override_config(read_config(workdir), overrides)
    validate(config)
    num_images = arguments.num_images
    if num_images is None:
        num_images = config.evaluation.num_images
    if num_images < 2:
        raise UserError(f"--num_images is {num_images}, expected at least 2")
    ways = _ways(workdir, config, arguments, among_others)
    decays = _decays(config, arguments.ema_decay)
    make_mesh(config.mesh)  # complains before a classifier is trained
    check_checkpoint(workdir)
    read_results(workdir)
    return Task(workdir, config, ways, num_images, decays)


def _ways(
    workdir: Path,
    config: "ConfigDict",
    arguments: argparse.Namespace,
    among_others: bool,
) -> "list[SamplingOptions]":
    """The ways asked for, each once; of a student among other runs its own.

    There it is said if others were asked for; alone, a student refuses them.
    """
    from multistep_cm.generation import sampling_options
    from multistep_cm.sharding.distributed import say
    from multistep_cm.training.methods import METHODS

    asked = [
        (sampler, num_steps)
        for sampler in _words(arguments.sampler)
        for num_steps in _numbers(arguments.num_steps)
    ]
    if among_others and METHODS[config.method].is_student:
        own = config.consistency.student_steps
        if not {*asked} <= {(s, n) for s in (None, "ddim") for n in (None, own)}:
            steps = f"{own} step{'s' if own > 1 else ''}"
            say(f"{workdir} is a student: measured by ddim at its own {steps} only")
        asked = [(None, None)]
    guidance, x_variance = arguments.guidance_scale, arguments.x_variance
    ways = [sampling_options(config, *way, guidance, x_variance) for way in asked]
    return list(dict.fromkeys(ways))


def _decays(config: "ConfigDict", text: str | None) -> "list[float | None]":
    """The averages asked for, each once; UserError for one that is not tracked."""
    from multistep_cm.training.teacher import average_name, known_decays

    if text is None:
        return [None]
    if text == "all":
        return [*sorted(known_decays(config))]
    try:
        decays = [float(part) for part in text.split(",")]
    except ValueError as error:
        known = ", ".join(map(str, known_decays(config)))
        raise UserError(
            f"--ema_decay is {text!r}, expected all or some of: {known}"
        ) from error
    for decay in decays:
        average_name(config, decay)
    return [*dict.fromkeys(decays)]


def check_fid(
    arguments: argparse.Namespace, group: Sequence[Task]
) -> "FidOptions | None":
    """What FID needs, read and checked; None where it is not asked for."""
    from multistep_cm.commands.sample import make_folder
    from multistep_cm.evaluation.fid_setup import fid_options
    from multistep_cm.sharding.distributed import is_main_process

    asked = arguments.features.split(",")
    if not set(asked) <= {"classifier", "inception"}:
        raise UserError(
            f"--features is {arguments.features!r}, expected classifier, inception or "
            "classifier,inception"
        )
    files = {
        name: getattr(arguments, name)
        for name in ("inception_weights", "reference", "write_reference")
    }
    if "inception" not in asked:
        for name, path in files.items():
            if path is not None:
                raise UserError(f"--{name} is for FID: add --features=inception")
        return None
    num_images = min(task.num_images for task in group)
    options = fid_options(group[0].config, num_images, *files.values())
    if options.write_to is not None and is_main_process():
        make_folder(options.write_to.parent, "--write_reference")
    return options


def _words(text: str | None) -> list[str | None]:
    return [None] if text is None else list(text.split(","))


def _numbers(text: str | None) -> list[int | None]:
    if text is None:
        return [None]
    read = whole(1, MOST_STEPS)
    try:
        return [read(part) for part in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise UserError(
            f"--num_steps is {text!r:.200}, expected numbers such as 8 or 8,32,128, "
            f"from 1 to {MOST_STEPS}"
        ) from error
