"""Processes forked from one that has imported everything: most of a start is imports.

  python -m benchmarks.faults.forks

reads lines of JSON and forks a victim for each (`victim.py`), one after the other: it
says the process number when it has begun, and its status when it has ended.
"""

import importlib
import json
import os
import select
import signal
import subprocess
import sys
from typing import Any

from benchmarks.faults import victim
from benchmarks.faults.layout import ROOT

MODULES = (
    "multistep_cm.commands.train",
    "multistep_cm.data.tfds_source",
    "multistep_cm.generation",
    "multistep_cm.training.loop",
)
"""What a training run imports, and what that imports."""


class Forked:
    """A forked process, with what `subprocess.Popen` has of the same names."""

    def __init__(self, server: "Server", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Its status, if it has ended."""
        if self.returncode is None and self._server.has_line(0):
            self.returncode = self._server.read()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its status; raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not self._server.has_line(timeout):
                raise subprocess.TimeoutExpired("forked", timeout or 0.0)
            self.returncode = self._server.read()
        return self.returncode


class Server:
    """The process that forks; one for a campaign."""

    def __init__(self, variables: dict[str, str]) -> None:
        """Start it, and wait until it has imported everything."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.forks"],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.read()

    def start(
        self, arguments: list[str], said: str, variables: dict[str, str]
    ) -> Forked:
        """A victim with these arguments, which writes what it says to a file.

        The variables are added to its environment; what is imported has read its own.
        """
        assert self._process.stdin is not None
        request = {"arguments": arguments, "said": said, "variables": variables}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return Forked(self, self.read())

    def has_line(self, timeout: float | None) -> bool:
        """Whether it says something within so many seconds."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], timeout)[0])

    def read(self) -> int:
        """The next number that it says."""
        assert self._process.stdout is not None
        # Byte by byte: what a buffer held, `select` would not see.
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._process.stdout.fileno(), 1)
            if not byte:
                raise RuntimeError("the process that forks has ended")
            line += byte
        return int(line)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """Import everything, then fork for each line of the input."""
    for name in MODULES:
        importlib.import_module(name)
    answers = os.dup(1)
    os.write(answers, b"0\n")
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(request)
        os.write(answers, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _become(request: dict[str, Any]) -> None:
    """The forked process: run the command and end as a process of its own would."""
    output = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["variables"])
    sys.exit(victim.main([*request["arguments"]]))


if __name__ == "__main__":
    serve()
