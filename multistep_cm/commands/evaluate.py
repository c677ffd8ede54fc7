"""Measure a run against the data it was trained on, and keep the numbers.

  multistep-cm evaluate --workdir=runs/cd4
  multistep-cm evaluate --workdir=runs/teacher --num_steps=8,32,128 --sampler=ddim,addim
  multistep-cm evaluate --workdir=runs/cd8 --num_images=50000 --features=inception \\
      --inception_weights=weights-inception-2015-12-05-6726825d.pth

Fréchet distance in the features of a classifier that is trained on the data (made once,
kept in DIR/classifier.npz), its floor (real images against real images), accuracy of
the classes, and the variance of the pixels. With --features=inception: FID, sFID,
Inception Score, precision and recall, as docs/evaluation.md defines them. Rows go to
DIR/evaluation.json.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from multistep_cm.commands.processes import add_process_arguments, start
from multistep_cm.errors import UserError

if TYPE_CHECKING:  # `--help` does not wait for JAX
    from ml_collections import ConfigDict

    from multistep_cm.evaluation.fid_setup import FidOptions
    from multistep_cm.generation import SamplingOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate`."""
    add = parser.add_argument
    add("--workdir", required=True, type=Path, metavar="DIR", help="a trained run")
    add("--num_steps", help="step counts, such as 8,32,128 (default: the run's own)")
    add("--sampler", help="samplers, such as ddim,addim (default: the run's own)")
    add("--guidance_scale", type=float, help="default: the run's own")
    add(
        "--x_variance",
        choices=("analytic", "measured"),
        help="what the sampler addim puts back: 0.1 / (2 + SNR), or measured on data",
    )
    add("--num_images", type=int, help="default: evaluation.num_images of the run")
    add("--seed", type=int, default=0, help="of the starting noise (default 0)")
    add(
        "--classifier",
        type=Path,
        metavar="FILE.npz",
        help="where the classifier is kept (default DIR/classifier.npz)",
    )
    add(
        "--features",
        default="classifier",
        help="classifier (the default), inception (FID), or both: classifier,inception",
    )
    add("--inception_weights", type=Path, metavar="FILE", help="of the FID network")
    add(
        "--reference",
        type=Path,
        metavar="FILE.npz",
        help="mu and sigma of the real images (default: measure the training split)",
    )
    add(
        "--write_reference",
        type=Path,
        metavar="FILE.npz",
        help="keep what was measured of the training split",
    )
    add_process_arguments(parser)


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Evaluate, print the table, write the file."""
    start(arguments, overrides)
    from multistep_cm.evaluation.evaluate import (
        EVALUATION_NAME,
        evaluate_run,
        load_reference,
    )
    from multistep_cm.evaluation.fid_setup import make_meter
    from multistep_cm.reporting.tables import format_rows
    from multistep_cm.sharding.agreement import main_first, together
    from multistep_cm.sharding.distributed import say

    classifier_path = arguments.classifier or arguments.workdir / "classifier.npz"
    config, ways, num_images = together(
        lambda: check(arguments, overrides, classifier_path)
    )
    options = together(lambda: check_fid(arguments, config, num_images))
    classifier = reference = None
    if "classifier" in arguments.features.split(","):
        # The first process trains it and writes the file that others read.
        classifier, reference = main_first(
            lambda: load_reference(config, classifier_path)
        )
    rows = evaluate_run(
        arguments.workdir,
        ways,
        classifier,
        reference,
        num_images,
        arguments.seed,
        overrides,
        fid=None if options is None else make_meter(config, options),
    )
    say(format_rows(rows, None if reference is None else reference.floor))
    say(f"wrote {arguments.workdir / EVALUATION_NAME}")
    return 0


def check(
    arguments: argparse.Namespace, overrides: Mapping[str, str], classifier_path: Path
) -> "tuple[ConfigDict, list[SamplingOptions], int]":
    """The run's config, the ways to sample it and the number of images.

    Raises UserError for all that can be known to be wrong before anything is paid for.
    """
    from multistep_cm.generation import sampling_options
    from multistep_cm.sharding.mesh import make_mesh
    from multistep_cm.training.teacher import check_checkpoint
    from multistep_cm.validation import validate
    from multistep_cm.workdir import override_config, read_config

    config = override_config(read_config(arguments.workdir), overrides)
    validate(config)
    num_images = arguments.num_images
    if num_images is None:
        num_images = config.evaluation.num_images
    if num_images < 2:
        raise UserError(f"--num_images is {num_images}, expected at least 2")
    ways = [
        sampling_options(
            config,
            sampler,
            num_steps,
            arguments.guidance_scale,
            arguments.x_variance,
        )
        for sampler in _words(arguments.sampler)
        for num_steps in _numbers(arguments.num_steps)
    ]
    if classifier_path.suffix != ".npz":
        raise UserError(
            f"--classifier is {classifier_path}, expected a name ending in .npz"
        )
    make_mesh(config.mesh)  # complains before a classifier is trained
    check_checkpoint(arguments.workdir)
    return config, ways, num_images


def check_fid(
    arguments: argparse.Namespace, config: "ConfigDict", num_images: int
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
    options = fid_options(config, num_images, *files.values())
    if options.write_to is not None and is_main_process():
        make_folder(options.write_to.parent, "--write_reference")
    return options


def _words(text: str | None) -> list[str | None]:
    return [None] if text is None else list(text.split(","))


def _numbers(text: str | None) -> list[int | None]:
    if text is None:
        return [None]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"--num_steps is {text!r}, expected numbers such as 8 or 8,32,128"
        ) from error
