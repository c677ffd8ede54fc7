"""One page that shows a run, or compares several: report.html, complete in one file.

  multistep-cm report --workdir=runs/cd4
  multistep-cm report --workdir=runs/teacher --workdir=runs/cd4 --output=report.html
  multistep-cm report --workdir runs/quickstart/*/ --num_images=0

Distance against steps with the teacher's line and the floor, losses, samples from the
same noise, the way from noise to images, every number of evaluation.json, the configs
and the commands that make it again. It opens without a network, on phones and in the
dark. What a run lacks is said in the page, with the command that makes it. On other
devices than it was trained on: --config.mesh.fsdp=1 --config.mesh.data=-1.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from multistep_cm.commands.arguments import MOST_IMAGES, as_path, as_seed, whole
from multistep_cm.errors import UserError
from multistep_cm.files import is_folder

STOPPED = "a page is written whole or not at all; the same command writes it"
"""Said when SIGTERM ends it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `report`."""
    add = parser.add_argument
    add(
        "--workdir",
        required=True,
        type=as_path,
        nargs="+",
        action="extend",
        metavar="DIR",
        help="a trained run; say it again, or name more, to compare",
    )
    add(
        "--output",
        type=as_path,
        metavar="FILE.html",
        help="default: DIR/report.html; report.html here for several runs",
    )
    add(
        "--num_images",
        type=whole(0, MOST_IMAGES),
        default=10,
        help="images of each model (default 10); 0 reads no checkpoint",
    )
    add("--seed", type=as_seed, default=0, help="of the starting noise (default 0)")


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Make the page and say where it is."""
    output = check(arguments)
    from multistep_cm.inspection.collect import make_report, write_report

    report = make_report(
        arguments.workdir, arguments.num_images, arguments.seed, overrides
    )
    write_report(output, report)
    for item in report.missing:
        print(f"missing: {item.what}")
        if item.command:
            print(f"  {item.command}")
    print(f"wrote {output}")
    return 0


def check(arguments: argparse.Namespace) -> Path:
    """Where the page goes; its folder is made.

    Raises UserError for all that can be known to be wrong before anything is read.
    """
    output: Path = arguments.output or Path("report.html")
    if arguments.output is None and len(arguments.workdir) == 1:
        output = arguments.workdir[0] / "report.html"
    elif output.suffix not in (".html", ".htm"):
        raise UserError(f"--output is {output}, expected a name ending in .html")
    if arguments.num_images < 0:
        raise UserError(f"--num_images is {arguments.num_images}, expected 0 or more")
    missing = [path for path in arguments.workdir if not is_folder(path)]
    if missing:
        raise UserError(f"workdir {missing[0]} does not exist: train a run into it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output: folder {output.parent} cannot be made: {error.strerror}"
        ) from error
    return output
