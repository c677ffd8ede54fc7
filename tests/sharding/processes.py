"""Runs of several real processes on this machine, each with simulated devices."""

import concurrent.futures
import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from tests.training.tiny import flags

ROOT = Path(__file__).parents[2]
PATIENCE = 400.0
HEARTBEAT = 10

LOG_LINE = re.compile(r"[IWEF]\d{4} \d\d:\d\d:")
"""Lines in the style of C++, such as the news that a signal came."""

GLOO = re.compile(
    r"(\[Gloo\] Rank | is connected to | peer ranks\. |"
    r"Expected number of connected peer ranks is : |\d|\s)*"
)
"""What Gloo's threads say in pieces, which may come in any order and on any line."""

Process = subprocess.Popen[str]


def free_address() -> str:
    """A `host:port` of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def train_command(config: ConfigDict, workdir: Path) -> list[str]:
    """`multistep-cm train` of this config."""
    module = [sys.executable, "-m", "multistep_cm", "train"]
    return [
        *module,
        f"--config={ROOT / 'configs' / 'digits.py'}",
        f"--workdir={workdir}",
        *flags(config),
    ]


def named(
    address: str, number: int, process: int, heartbeat: int = HEARTBEAT
) -> list[str]:
    """The options of one of several plain processes."""
    return [
        f"--coordinator={address}",
        f"--num_processes={number}",
        f"--process_id={process}",
        f"--heartbeat_timeout={heartbeat}",
        "--start_timeout=120",
    ]


def start(
    command: Sequence[str],
    devices: int,
    folder: Path = ROOT,
    **variables: str,
) -> Process:
    """A process with so many simulated devices; stderr goes with stdout."""
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextlib.contextmanager
def several(
    commands: Sequence[Sequence[str]],
    folders: Sequence[Path] | None = None,
    devices: int = 4,
    variables: Sequence[dict[str, str]] | None = None,
) -> Iterator[list[Process]]:
    """All started, each with so many devices; killed at the end if they still run."""
    folders = folders or [ROOT] * len(commands)
    more = variables or [{}] * len(commands)
    processes = [
        start(command, devices, folder, **own)
        for command, folder, own in zip(commands, folders, more, strict=True)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def training(config: ConfigDict, workdir: Path) -> Iterator[list[Process]]:
    """One run of two plain processes with four devices each."""
    address, command = free_address(), train_command(config, workdir)
    commands = [[*command, *named(address, 2, process)] for process in range(2)]
    with several(commands) as processes:
        yield processes


def outputs(processes: Sequence[Process]) -> list[str]:
    """What each has said, once it has ended.

    All are read at once: one that nobody reads stops when it has said 64 kB.
    """

    def read(process: Process) -> str:
        return process.communicate(timeout=PATIENCE)[0]

    with concurrent.futures.ThreadPoolExecutor(len(processes)) as threads:
        return list(threads.map(read, processes))


def sentences(text: str) -> list[str]:
    """Lines that are not from the libraries underneath."""
    return [
        line
        for line in text.splitlines()
        if not LOG_LINE.match(line) and not GLOO.fullmatch(line)
    ]


def wait_for(processes: Sequence[Process], happened: Callable[[], bool]) -> None:
    """Until it has; fails when a process ends before."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
