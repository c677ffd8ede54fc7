"""Check every checkpoint of a run: are all bytes those that were saved?

  multistep-cm verify --workdir=runs/teacher

Says a line for each step and exits with 1 when one is damaged. It changes nothing: a
damaged step is passed over by whoever reads it, and `train` moves it to DIR/broken.
"""

import argparse
from collections.abc import Mapping

from multistep_cm.commands.arguments import as_path
from multistep_cm.commands.processes import add_process_arguments, start
from multistep_cm.errors import UserError

STOPPED = "not all checkpoints were checked; nothing was changed"
"""Said when SIGTERM ends it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `verify`."""
    parser.add_argument(
        "--workdir", required=True, type=as_path, metavar="DIR", help="a run"
    )
    add_process_arguments(parser)


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Check all steps; 1 when one is damaged."""
    start(arguments, overrides)
    from multistep_cm.checkpoints import Checkpoints
    from multistep_cm.sharding.agreement import together
    from multistep_cm.sharding.distributed import say
    from multistep_cm.sharding.mesh import make_mesh
    from multistep_cm.training.teacher import check_checkpoint

    if overrides:
        raise UserError(f"--config.{next(iter(overrides))}: verify reads no config")
    together(lambda: check_checkpoint(arguments.workdir))
    mesh = make_mesh({"data": 1, "fsdp": -1, "tensor": 1})
    number = damaged = 0
    with Checkpoints(arguments.workdir) as checkpoints:
        for step, reason in checkpoints.verify(mesh):
            say(f"step {step}: {reason or 'good'}")
            number += 1
            damaged += bool(reason)
    say(f"{number - damaged} of {number} checkpoints are good")
    return 1 if damaged or not number else 0
