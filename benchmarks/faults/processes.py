"""Commands of ours in processes of their own: started, watched, killed."""

import contextlib
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.faults.forks import Forked, Server
from benchmarks.faults.layout import ROOT

TRACEBACK = "Traceback (most recent call last)"
PATIENCE = 400.0
"""Seconds after which a process counts as hanging."""

POLL = 0.003

HEARTBEAT = 10
"""Seconds after which a silent process of several counts as dead."""


class Victim:
    """A command under watch; `benchmarks/faults/victim.py` writes its log."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        self_kill: str = "-",
        devices: int = 1,
        variables: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        server: Server | None = None,
    ) -> None:
        """Start it; its log and what it says go to two new files in `folder`.

        With a server it is forked, in that one's environment. Else words may stand
        before the command, to start it by another.
        """
        folder.mkdir(parents=True, exist_ok=True)
        number = len([*folder.glob("*.log")])
        self.log = folder / f"{number}.log"
        self.said = folder / f"{number}.txt"
        self.log.touch()
        self.process: subprocess.Popen[bytes] | Forked
        self.begin = time.monotonic()
        self.killed = math.inf
        arguments = [str(self.log), self_kill, *command]
        if server is not None:
            self.process = server.start(arguments, str(self.said), variables or {})
            return
        module = [sys.executable, "-m", "benchmarks.faults.victim"]
        with self.said.open("wb") as output:
            self.process = subprocess.Popen(
                [*prefix, *module, *arguments],
                cwd=ROOT,
                env=environment(devices) | (variables or {}),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def lines(self) -> list[tuple[float, str]]:
        """Seconds since the start, and what the log says."""
        return read_log(self.log, self.begin)

    def await_line(self, text: str, number: int = 1) -> bool:
        """Whether the log says it so often before the process ends."""
        deadline = time.monotonic() + PATIENCE
        while True:
            ended = self.process.poll() is not None
            found = [line for _, line in self.lines() if line == text]
            if len(found) >= number:
                return True
            if ended or time.monotonic() > deadline:
                return False
            time.sleep(POLL)

    def send(self, number: int) -> None:
        """Send a signal, and remember when."""
        self.killed = time.monotonic() - self.begin
        self.process.send_signal(number)

    def wait(self) -> int | None:
        """The exit status; None when it hangs, and it is killed then."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.stop()
            return None

    def stop(self) -> None:
        """End it if it runs."""
        self.process.kill()
        self.process.wait()

    def text(self) -> str:
        """What it said."""
        return self.said.read_text(errors="replace")

    def phase(self) -> str:
        """The phase in which the log ends, or in which the signal came."""
        open_phases: list[str] = ["start-up"]
        for moment, line in self.lines():
            if moment > self.killed or line.startswith("killed before "):
                break
            word, _, name = line.partition(" ")
            if word == "enter":
                open_phases.append(name)
            elif word == "exit" and name in open_phases:
                open_phases.remove(name)
            elif word == "step" and "step" not in open_phases:
                open_phases.insert(1, "step")
        return open_phases[-1]

    def steps(self) -> int | None:
        """The step that it resumed from, 0 for none; None when it never got there."""
        found = re.findall(r" resumes (\d+)$", self.log.read_text(), re.MULTILINE)
        return int(found[-1]) if found else None

    def calls(self) -> int:
        """How often the compiled step was called."""
        return sum(line == "step" for _, line in self.lines())

    def sentence(self) -> str:
        """The one sentence with which it ended; empty for a traceback or none."""
        return ending(self.text())


def read_log(log: Path, begin: float) -> list[tuple[float, str]]:
    """Seconds since `begin`, and what a log says."""
    rows = [row.partition(" ") for row in log.read_text().splitlines()]
    return [(float(moment) - begin, text) for moment, _, text in rows]


@contextlib.contextmanager
def watched(victim: Victim) -> Iterator[Victim]:
    """The victim, which does not outlive the context."""
    try:
        yield victim
    finally:
        victim.stop()


@contextlib.contextmanager
def several(
    folder: Path, command: Sequence[str], number: int, devices: int = 8
) -> Iterator[list[Victim]]:
    """The command in so many processes, with so many devices in all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                watched(
                    Victim(
                        folder / f"{index}-of-{number}",
                        [*command, *_named(port, number, index)],
                        devices=devices // number,
                    )
                )
            )
            for index in range(number)
        ]


def _named(port: int, number: int, index: int) -> list[str]:
    if number == 1:
        return []
    return [
        f"--coordinator=127.0.0.1:{port}",
        f"--num_processes={number}",
        f"--process_id={index}",
        f"--heartbeat_timeout={HEARTBEAT}",
        "--start_timeout=300",
    ]


def run_to_end(
    folder: Path, command: Sequence[str], number: int = 1, devices: int = 8
) -> str:
    """Let it finish; what went wrong, or an empty string."""
    with several(folder, command, number, devices) as victims:
        statuses = [victim.wait() for victim in victims]
        for status, victim in zip(statuses, victims, strict=True):
            if status != 0 or TRACEBACK in victim.text():
                return f"{status}: {victim.text()[-2000:]}"
    return ""


def ending(said: str) -> str:
    """The line by which a command of ours says why it ends.

    Empty when there is none, and when a traceback passes through our code. Libraries
    may print some of their own threads: TensorStore does, of callbacks too late.
    """
    tracebacks = said.partition(TRACEBACK)[2]
    if "/multistep_cm/" in "".join(re.findall(r'^ +File "[^"]*"', tracebacks, re.M)):
        return ""
    own = [line for line in said.splitlines() if line.startswith("multistep-cm ")]
    return own[-1] if own else ""


def environment(devices: int) -> dict[str, str]:
    """Of a process with so many simulated devices."""
    return {
        # All programs are kept, for a run is compiled hundreds of times.
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        **os.environ,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "MPLBACKEND": "Agg",
    }
