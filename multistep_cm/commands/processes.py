"""The options by which one of several processes is started, shared by the commands."""

import argparse
from collections.abc import Mapping

from multistep_cm.commands.arguments import whole

OWN = ("process_id",)
"""Options that differ between the processes of one run."""


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a run of several processes, and of the compilation cache."""
    group = parser.add_argument_group(
        "several processes",
        "Start the same command once on every host (once for every GPU under SLURM). "
        "SLURM, GKE and TPU pods are detected; elsewhere say the first three.",
    )
    add = group.add_argument
    add("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    add("--num_processes", type=whole(1), metavar="N", help="how many there are")
    add("--process_id", type=whole(0), metavar="I", help="which this one is, from 0")
    add(
        "--heartbeat_timeout",
        type=whole(1),
        default=100,
        metavar="SECONDS",
        help="the run ends when a process is silent for so long (default 100)",
    )
    add(
        "--start_timeout",
        type=whole(1),
        default=300,
        metavar="SECONDS",
        help="how long processes wait for each other at the start (default 300)",
    )
    parser.add_argument(
        "--compilation_cache",
        metavar="DIR",
        help="keep compiled programs here, for later runs: a folder that outlives the "
        "machine and that all processes share (default: JAX_COMPILATION_CACHE_DIR)",
    )


def start(
    arguments: argparse.Namespace,
    overrides: Mapping[str, str],
) -> None:
    """Meet the other processes, if there are any; call it before anything of JAX.

    Raises UserError when they do not come, or come with another command line.
    """
    import jax

    from multistep_cm import __version__
    from multistep_cm.sharding.agreement import check_same
    from multistep_cm.sharding.distributed import ProcessOptions, start_processes

    if arguments.compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", arguments.compilation_cache)
        # Small programs too: a start has dozens of them.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    start_processes(
        ProcessOptions(
            arguments.coordinator,
            arguments.num_processes,
            arguments.process_id,
            arguments.heartbeat_timeout,
            arguments.start_timeout,
        )
    )
    options = {name: v for name, v in vars(arguments).items() if name not in OWN}
    check_same(
        {"the version of multistep_cm": __version__}
        | {"the version of jax": jax.__version__}
        | {f"--{name}": str(value) for name, value in options.items()}
        | {f"--config.{key}": value for key, value in overrides.items()},
        "start all of them with the same command and the same installation",
    )
