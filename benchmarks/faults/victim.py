"""A command of ours in a process that says where it is, and may kill itself there.

  python -m benchmarks.faults.victim LOG SELF_KILL COMMAND ARGUMENTS..

Every phase that begins or ends is a line in LOG: the time (CLOCK_MONOTONIC, which all
processes share) and `enter NAME` or `exit NAME`. SELF_KILL is `-`, or `CLASS:N:SIGNAL`:
the process sends itself that signal just before the N-th operation of that class on
files, which nobody outside could hit: `remove`, `rename`, `create`, or `any` of them.
Only what Python does counts; what TensorStore writes is hit by chance, from outside.
With FAULTS_CLOCK=SEED in the environment, the clock jumps; with FAULTS_NO_CACHE, all
programs are compiled anew.
"""

import functools
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Log = Callable[[str], None]

CLASSES = {
    "os.remove": "remove",
    "os.rmdir": "remove",
    "os.rename": "rename",
    "os.mkdir": "create",
}
"""Python's audit events of files to the classes above."""

PHASES = (
    ("multistep_cm.training.setup", "check_run", "check"),
    ("multistep_cm.training.setup", "restore_state", "restore"),
    ("multistep_cm.training.setup", "init_state", "init"),
    ("multistep_cm.training.setup", "build_step", "compile"),
    ("multistep_cm.checkpoints", "Checkpoints.save", "save"),
    ("multistep_cm.checkpoints", "Checkpoints.wait", "wait"),
    ("multistep_cm.training.preview", "Preview.compile", "compile"),
    ("multistep_cm.training.preview", "Preview.draw", "sampling"),
    ("multistep_cm.commands.evaluate", "measure_group", "evaluation"),
    ("multistep_cm.commands.sample", "run", "evaluation"),
)
"""Module, function and the name of the phase that it is."""


STEP = "build_step"
"""The one of them that returns the compiled train step."""


def open_log(path: str) -> Log:
    """What writes a line to the log, in one call to the system."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def log(text: str) -> None:
        os.write(file, f"{time.monotonic():.6f} {text}\n".encode())

    return log


def watch_files(log: Log, self_kill: str) -> None:
    """Log the start of every removal of a tree; send the signal when its time comes."""
    wanted, count, signal_number = ("-:0:0" if self_kill == "-" else self_kill).split(
        ":"
    )
    counts = {"seen": 0}
    lock = threading.Lock()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "shutil.rmtree":
            log(f"removes {arguments[0]}")
        kind = CLASSES.get(event)
        if kind is None or "__pycache__" in str(arguments[0]):
            return
        log(f"file {kind}")
        if wanted not in (kind, "any"):
            return
        with lock:
            counts["seen"] += 1
            now = counts["seen"] == int(count)
        if now:
            log(f"killed before {event} {arguments[0]}")
            os.kill(os.getpid(), int(signal_number))

    sys.addaudithook(hook)


def shake_clock(seed: str) -> None:
    """Python's `time.time` jumps by up to 400 days to and fro, twice a second."""
    real, draw = time.time, random.Random(int(seed))
    jumps = [draw.uniform(-400, 400) * 86400 for _ in range(64)]
    begin = time.monotonic()

    def jumping() -> float:
        return real() + jumps[int(2 * (time.monotonic() - begin)) % len(jumps)]

    time.time = jumping


def watch_phases(log: Log) -> None:
    """Wrap the functions of `PHASES`; the compiled step says when it is called."""
    import importlib

    for module_name, path, phase in PHASES:
        owner: Any = importlib.import_module(module_name)
        *classes, name = path.split(".")
        for part in classes:
            owner = getattr(owner, part)
        setattr(owner, name, _wrap(log, getattr(owner, name), phase))


def _wrap(log: Log, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        log(f"enter {phase}")
        try:
            result = function(*arguments, **options)
        finally:
            log(f"exit {phase}")
        if phase == "restore":
            log(f"resumes {0 if result is None else int(result[0].step)}")
        # The previews' program, compiled too, takes no step.
        return _log_calls(log, result) if function.__name__ == STEP else result

    return wrapped


def _log_calls(log: Log, compiled: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        log("step")
        return compiled(*arguments)

    return call


def main(argv: list[str]) -> int:
    """Run the command; its exit status."""
    log_path, self_kill, *command = argv
    log = open_log(log_path)
    log("enter start-up")
    watch_files(log, self_kill)
    if "FAULTS_CLOCK" in os.environ:
        shake_clock(os.environ["FAULTS_CLOCK"])
    if "FAULTS_NO_CACHE" in os.environ:
        import jax

        jax.config.update("jax_enable_compilation_cache", False)
    from multistep_cm.commands.main import program

    watch_phases(log)
    log("exit start-up")
    sys.argv[1:] = command
    status = program()
    log("enter end")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
