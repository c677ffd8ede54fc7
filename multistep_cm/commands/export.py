"""Write a run's sampler as a file that needs jax alone, or its weights.

  multistep-cm export --workdir=runs/cd4 --output=exported
  multistep-cm export --workdir=runs/teacher --num_steps=32 --weights=beside
  multistep-cm export --workdir=runs/cd4 --output=weights.safetensors

A folder gets sampler.jaxexport, which serves any batch size and every platform named,
export.json, which says how to call it, and with --weights=beside weights.safetensors.
From a seed and labels it draws the images that `sample` draws; docs/export.md shows how
to call it without this package.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from multistep_cm.commands.arguments import MOST_STEPS, as_number, as_path, whole
from multistep_cm.errors import UserError

if TYPE_CHECKING:  # `--help` does not wait for JAX
    from ml_collections import ConfigDict

    from multistep_cm.exporting import ExportOptions
    from multistep_cm.generation import SamplingOptions

DEFAULT_PLATFORMS = "cpu,cuda,tpu"
ONE_DEVICE = {"data": 1, "fsdp": 1, "tensor": 1}

STOPPED = "a file is written whole or not at all; the same command writes it"
"""Said when SIGTERM ends it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `export`."""
    add = parser.add_argument
    add("--workdir", required=True, type=as_path, metavar="DIR", help="a trained run")
    add(
        "--output",
        type=as_path,
        metavar="DIR",
        help="a folder, or FILE.safetensors for the weights alone (default "
        "WORKDIR/export)",
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
    add(
        "--platforms",
        metavar="NAMES",
        help=f"some of cpu,cuda,rocm,tpu (default {DEFAULT_PLATFORMS})",
    )
    add(
        "--weights",
        choices=("baked", "beside"),
        help="in the program (default), or in a safetensors file beside it",
    )


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Export and say what was written."""
    import jax

    from multistep_cm.exporting import (
        WeightsSource,
        describe,
        export_sampler,
        flatten_params,
        write_export,
        write_weights,
    )
    from multistep_cm.generation import measured_x_variance
    from multistep_cm.sharding.mesh import make_mesh
    from multistep_cm.training.teacher import load_ema

    output = arguments.output or arguments.workdir / "export"
    config, options, to = check(arguments, overrides, output)
    mesh = make_mesh(ONE_DEVICE, jax.devices()[:1])
    decay = arguments.ema_decay
    step, params = load_ema(arguments.workdir, config, mesh, decay)
    source = WeightsSource(step, config.training.ema_decay if decay is None else decay)
    weights = flatten_params(params)
    if output.suffix == ".safetensors":
        write_weights(output, weights, source, config)
        print(f"wrote {len(weights)} arrays (step {step}) to {output}")
        return 0
    x_variance = measured_x_variance(config, options, params)
    exported = export_sampler(config, options, weights, to, x_variance)
    description = describe(config, options, exported, to, source)
    paths = write_export(output, exported, weights, to, description, source, config)
    calls, names = options.network_calls, ", ".join(to.platforms)
    print(f"step {step}, {calls} network calls, for {names}; wrote:")
    for path in paths:
        print(f"  {path} ({path.stat().st_size:,} bytes)")
    return 0


def check(
    arguments: argparse.Namespace, overrides: Mapping[str, str], output: Path
) -> "tuple[ConfigDict, SamplingOptions, ExportOptions]":
    """The run's config, how it samples and what is written; makes the folder.

    Raises UserError for all that can be known to be wrong beforehand.
    """
    from multistep_cm import factory
    from multistep_cm.exporting import ExportOptions, check_size
    from multistep_cm.generation import sampling_options
    from multistep_cm.training.teacher import average_name, check_checkpoint
    from multistep_cm.validation import validate
    from multistep_cm.workdir import override_config, read_config

    config = override_config(read_config(arguments.workdir), overrides)
    validate(config)
    average_name(config, arguments.ema_decay)
    asked = {
        name: getattr(arguments, name)
        for name in ("sampler", "num_steps", "guidance_scale", "x_variance")
    }
    options = sampling_options(config, *asked.values())
    named = arguments.platforms
    platforms = parse_platforms(DEFAULT_PLATFORMS if named is None else named)
    to = ExportOptions(platforms, baked=arguments.weights != "beside")
    folder = output
    if output.suffix == ".safetensors":
        folder = output.parent
        asked |= {"platforms": named, "weights": arguments.weights}
        said = [f"--{name}" for name, value in asked.items() if value is not None]
        if said:
            raise UserError(
                f"{said[0]} has no effect on {output}, which holds weights alone: name "
                "a folder to export the sampler too"
            )
    elif to.baked:
        check_size(factory.abstract_params(factory.make_network(config), config))
    check_checkpoint(arguments.workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output: folder {folder} cannot be made: {error.strerror}"
        ) from error
    return config, options, to


def parse_platforms(text: str) -> tuple[str, ...]:
    """The platforms named, once each; UserError for one that jax does not have."""
    from multistep_cm.exporting import PLATFORMS

    names = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in PLATFORMS]
    if unknown:
        raise UserError(
            f"--platforms is {text!r}, expected some of: {', '.join(PLATFORMS)}"
        )
    return names
