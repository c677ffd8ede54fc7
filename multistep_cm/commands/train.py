"""Train what a config says, in a folder that holds all there is to know of the run.

  multistep-cm train --config=configs/digits.py:stage=teacher --workdir=runs/teacher
  multistep-cm train --config=configs/digits.py:stage=cd,steps=4 --workdir=runs/cd4 \\
      --config.teacher.workdir=runs/teacher

The same command continues a run that was stopped or killed. Any config key can be set:
--config.training.num_steps=1000. A config file is Python code: run those you trust.
"""

import argparse
from collections.abc import Mapping

from multistep_cm.commands.arguments import as_path
from multistep_cm.commands.processes import add_process_arguments, start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARGUMENTS]",
        help="config file, with arguments after a colon",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        type=as_path,
        metavar="DIR",
        help="folder of the run: checkpoints, metrics, samples",
    )
    parser.add_argument(
        "--compile_only",
        action="store_true",
        help="compile the train step for these devices, say how much memory it takes "
        "and stop; needs no data and writes nothing but the compilation cache",
    )
    add_process_arguments(parser)


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Train; 0 when the run is finished or was stopped in order."""
    start(arguments, overrides)
    from multistep_cm.config import load_config
    from multistep_cm.sharding.agreement import together
    from multistep_cm.sharding.distributed import say
    from multistep_cm.training.compilation import compile_only
    from multistep_cm.training.loop import train
    from multistep_cm.training.tracing import program_folder

    config = together(lambda: load_config(arguments.config, overrides))
    if arguments.compile_only:
        compile_only(config, program_folder())
    elif train(config, arguments.workdir, program_folder()):
        say(f"finished: {arguments.workdir}")
    return 0
