"""What a config costs on devices that are not here, before anyone pays for them.

  multistep-cm plan --config=configs/imagenet64.py:stage=cd --topology=v5e:8x8
  multistep-cm plan --config=configs/digits.py:stage=ct --topology=cpu:8 --output=P.json

Compiles the real train step for a TPU slice (the extra `tpu` brings the compiler; no
TPU is needed) or for N simulated CPU devices. Says the memory of a device and whether
it fits, FLOPs, collectives, and how fast a step can be; of each figure, whether it was
compiled, counted, measured or estimated. What does not fit is compiled again
with changes, until it does. Needs no data, no teacher and no --workdir.
"""

import argparse
import os
import sys
from collections.abc import Mapping

from multistep_cm.commands.arguments import as_path
from multistep_cm.errors import UserError
from multistep_cm.files import is_folder

STOPPED = "a plan is written whole or not at all; the same command makes it"
"""Said when SIGTERM ends it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `plan`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARGUMENTS]",
        help="config file, with arguments after a colon",
    )
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="a TPU slice (v5e:8x8, v5p:4x4x4; also v3, v4, v6e, tpu7x), or cpu:8 for "
        "so many simulated devices",
    )
    parser.add_argument(
        "--output", type=as_path, metavar="FILE.json", help="write all figures here"
    )
    parser.add_argument(
        "--verdict_only",
        action="store_true",
        help="when it does not fit, do not try what would",
    )


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Print the plan, write the file; 0 whether it fits or not."""
    from multistep_cm.planning.topology import (
        check_compiler,
        compiler_environment,
        parse_topology,
    )

    topology = parse_topology(arguments.topology)
    output = arguments.output
    if output is not None and not is_folder(output.absolute().parent):
        raise UserError(f"--output: there is no folder {arguments.output.parent}")
    if topology.chip:
        check_compiler()
        wanted = compiler_environment(os.environ)
        if wanted != dict(os.environ):
            sys.stdout.flush()
            command = [
                sys.executable,
                "-m",
                "multistep_cm",
                *_words(arguments, overrides),
            ]
            # The compiler reads its environment as it is loaded, so that this program
            # begins again with the right one. It keeps its process: signals and the
            # terminal stay as they are.
            os.execve(sys.executable, command, wanted)

    from multistep_cm.config import load_config
    from multistep_cm.files import write_text
    from multistep_cm.planning.making import Request, make_plan
    from multistep_cm.planning.plan import to_json
    from multistep_cm.planning.report import format_plan

    plan = make_plan(
        Request(
            load_config(arguments.config, overrides),
            topology,
            arguments.config,
            overrides,
            search=not arguments.verdict_only,
        )
    )
    print(format_plan(plan))
    if arguments.output is not None:
        write_text(arguments.output, to_json(plan))
        print(f"wrote {arguments.output}")
    return 0


def _words(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> list[str]:
    """The command line that gives these arguments."""
    words = ["plan", f"--config={arguments.config}", f"--topology={arguments.topology}"]
    if arguments.output is not None:
        words.append(f"--output={arguments.output}")
    if arguments.verdict_only:
        words.append("--verdict_only")
    return words + [f"--config.{key}={value}" for key, value in overrides.items()]
