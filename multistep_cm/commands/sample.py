"""Draw images from the averaged weights of a run.

  multistep-cm sample --workdir=runs/cd4 --num_images=100 --output=grid.png
  multistep-cm sample --workdir=runs/teacher --num_steps=32 --sampler=heun
  multistep-cm sample --workdir=runs/cd4 --num_images=50000 --output=samples.npz
  multistep-cm sample --workdir=runs/scenes --prompt="a four left of a nine"

A .npz holds arr_0 (uint8 NHWC) and, for models with classes, arr_1 (labels), as the ADM
evaluator reads it. The same seed gives image i the same noise in every run. On other
devices than it was trained on: --config.mesh.fsdp=1 --config.mesh.data=-1.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from multistep_cm.commands.arguments import (
    MOST_IMAGES,
    MOST_STEPS,
    as_number,
    as_path,
    as_seed,
    whole,
)
from multistep_cm.commands.processes import add_process_arguments, start
from multistep_cm.commands.prompts import decode_prompts, encode_prompts, read_prompts
from multistep_cm.errors import UserError

if TYPE_CHECKING:  # `--help` does not wait for JAX
    from ml_collections import ConfigDict

    from multistep_cm.generation import SamplingOptions, Wanted

STOPPED = "a file is written whole or not at all; the same command writes it"
"""Said when SIGTERM ends it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sample`."""
    add = parser.add_argument
    add("--workdir", required=True, type=as_path, metavar="DIR", help="a trained run")
    add(
        "--num_images",
        type=whole(1, MOST_IMAGES),
        help="how many (default 100, or one for each prompt)",
    )
    add(
        "--num_steps",
        type=whole(1, MOST_STEPS),
        help="sampling steps; a student only has the number it was trained for",
    )
    add("--sampler", help="ddim, addim, heun or ancestral; students: ddim")
    add(
        "--ema_decay",
        type=as_number,
        help="of the average to use (default: the main one)",
    )
    add("--guidance_scale", type=as_number, help="0 is none; 0.5 and 3 are the paper's")
    add(
        "--x_variance",
        choices=("analytic", "measured"),
        help="what the sampler addim puts back: 0.1 / (2 + SNR), or measured on data",
    )
    add("--labels", help="classes to draw, such as 3 or 0,1,2; default all in turn")
    add(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="what to draw, of a model that reads captions; may be given several times",
    )
    add(
        "--prompts_file",
        type=as_path,
        metavar="FILE",
        help="prompts, one a line (default: captions of the evaluation split)",
    )
    add("--seed", type=as_seed, default=0, help="of the starting noise (default 0)")
    add(
        "--output",
        type=as_path,
        metavar="FILE",
        help="FILE.png or FILE.npz (default DIR/samples/sample.png)",
    )
    add_process_arguments(parser)


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Sample and write the file."""
    start(arguments, overrides)
    from multistep_cm.evaluation.npz import save_samples
    from multistep_cm.generation import (
        compile_generator,
        measured_x_variance,
        num_wanted,
    )
    from multistep_cm.reporting.grids import image_grid, save_png
    from multistep_cm.reporting.progress import progress
    from multistep_cm.sharding.agreement import together
    from multistep_cm.sharding.distributed import is_main_process
    from multistep_cm.sharding.mesh import make_mesh
    from multistep_cm.training.teacher import load_ema

    output = arguments.output or arguments.workdir / "samples" / "sample.png"
    config, options, wanted = together(lambda: check(arguments, overrides, output))
    mesh = make_mesh(config.mesh)
    step, params = load_ema(arguments.workdir, config, mesh, arguments.ema_decay)
    number = num_wanted(wanted)
    batch_size = min(config.evaluation.batch_size, number)
    x_variance = measured_x_variance(config, options, params)
    generator = compile_generator(config, options, mesh, batch_size, x_variance)
    with progress("sampling", number, enabled=is_main_process()) as bar:
        images = generator(
            params,
            wanted,
            arguments.seed,
            bar.images_to,
        )
    if not is_main_process():
        return 0
    if output.suffix == ".npz":
        labels = wanted if isinstance(wanted, np.ndarray) else wanted["label"]
        save_samples(output, images, labels if config.data.num_classes else None)
    else:
        columns = min(10, len(images))
        names = None
        if arguments.labels is None and config.data.num_classes == columns:
            names = [str(label) for label in range(columns)]
        said = None
        if config.data.text == "bytes" and not isinstance(wanted, np.ndarray):
            said = decode_prompts(wanted)
            columns = min(5, len(images))
        grid = image_grid(images, columns, column_labels=names, captions=said)
        save_png(output, grid)
    how = f"step {step}, {options.network_calls} network calls"
    if arguments.ema_decay is not None:
        how += f", EMA {arguments.ema_decay}"
    print(f"wrote {len(images)} images ({how}) to {output}")
    return 0


def check(
    arguments: argparse.Namespace, overrides: Mapping[str, str], output: Path
) -> "tuple[ConfigDict, SamplingOptions, Wanted]":
    """The run's config, how to sample it and what; makes the folder of `output`.

    Raises UserError for all that can be known to be wrong before anything is compiled.
    """
    from multistep_cm.generation import default_wanted, sampling_options
    from multistep_cm.sharding.distributed import is_main_process, say
    from multistep_cm.sharding.mesh import make_mesh
    from multistep_cm.training.teacher import average_name, check_checkpoint
    from multistep_cm.validation import validate
    from multistep_cm.workdir import override_config, read_config

    if output.suffix not in (".png", ".npz"):
        raise UserError(f"--output is {output}, expected a name ending in .png or .npz")
    prompts = read_prompts(arguments.prompt, arguments.prompts_file)
    number = arguments.num_images
    if number is None:
        number = len(prompts) or 100
    if number < 1:
        raise UserError(f"--num_images is {number}, expected at least 1")
    config = override_config(read_config(arguments.workdir), overrides)
    validate(config)
    average_name(config, arguments.ema_decay)
    options = sampling_options(
        config,
        arguments.sampler,
        arguments.num_steps,
        arguments.guidance_scale,
        arguments.x_variance,
    )
    wanted: Wanted = parse_labels(arguments.labels, number, config.data.num_classes)
    if prompts:
        wanted, warning = encode_prompts(prompts, number, config.data)
        if warning:
            say(warning)
    elif config.data.text != "none":
        wanted = default_wanted(config, number)
    make_mesh(config.mesh)
    check_checkpoint(arguments.workdir)
    if is_main_process():
        make_folder(output.parent)
    return config, options, wanted


def make_folder(folder: Path, option: str = "--output") -> None:
    """Make it if absent; UserError, before the work is done, if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{option}: folder {folder} cannot be made: {error.strerror}"
        ) from error


def parse_labels(text: str | None, num_images: int, num_classes: int) -> np.ndarray:
    """The label of every image, int32 [num_images]: those asked for, in turn.

    Raises UserError for labels that are no classes of the model.
    """
    if text is None:
        return np.arange(num_images, dtype=np.int32) % max(num_classes, 1)
    if not num_classes:
        raise UserError(f"--labels is {text!r}, but the model has no classes")
    try:
        wanted = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"--labels is {text!r}, expected numbers such as 3 or 0,1,2"
        ) from error
    if any(not 0 <= label < num_classes for label in wanted):
        raise UserError(
            f"--labels is {text!r}, expected classes from 0 to {num_classes - 1}"
        )
    return np.resize(np.asarray(wanted, np.int32), num_images)
