"""Two processes of one run: one killed or stopped, and other meshes to resume on."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.faults.layout import Record
from benchmarks.faults.processes import HEARTBEAT, run_to_end, several
from benchmarks.faults.truth import Truth, compare, compare_roughly, newest_step

SLACK = 30.0
"""Seconds that a busy machine may add to the heartbeat."""

MESHES = (
    (1, "--config.mesh.fsdp=1"),
    (1, "--config.mesh.fsdp=4"),
    (2, "--config.mesh.fsdp=1"),
    (2, "--config.mesh.fsdp=8"),
)
"""Processes of eight devices in all, and how parameters are cut."""


def disturb(
    folder: Path, truth: Truth, data: Path, seed: Sequence[int], kind: str
) -> Record:
    """One of two processes is killed or stopped; the run must end and go on later.

    The other process must end by itself, within twice the heartbeat: the silence is
    noticed by the coordinator, then by the others.
    """
    rng = np.random.default_rng(seed)
    flags = truth.variant.flags(data, training__num_steps=truth.last)
    workdir = folder / "run"
    command = ["train", f"--workdir={workdir}", *flags]
    number = signal.SIGKILL if kind == "worker_killed" else signal.SIGSTOP
    index = int(rng.integers(2))
    event = str(rng.choice(["enter restore", "enter compile", "step", "exit save"]))
    times = int(rng.integers(1, 5)) if event in ("step", "exit save") else 1
    with several(folder / "logs", command, 2) as victims:
        happened = victims[index].await_line(event, times)
        time.sleep(rng.uniform(0, 0.3))
        victims[index].send(number)
        begin = time.monotonic()
        status = victims[1 - index].wait()
        seconds = time.monotonic() - begin
        for victim in victims:
            victim.stop()
        reached = max(victim.calls() for victim in victims)
        newest = newest_step(workdir)
    record: Record = {
        "process": index,
        "phase": f"{event} {times}",
        "seconds": round(seconds, 1),
        "repeated": max(0, reached - newest),
        "unfinished_save": True,
    }
    if not happened or status in (0, None):
        return record | {"outcome": "error", "note": f"the other ended with {status}"}
    if seconds > 2 * HEARTBEAT + SLACK:
        return record | {"outcome": "error", "note": "the other waited too long"}
    return record | finish(folder, command, 2, truth)


def change_mesh(folder: Path, truth: Truth, data: Path, seed: Sequence[int]) -> Record:
    """Killed in one number of processes and cut, finished in another."""
    rng = np.random.default_rng(seed)
    flags = truth.variant.flags(data, training__num_steps=truth.last)
    workdir = folder / "run"
    command = ["train", f"--workdir={workdir}", *flags]
    first, second = rng.permutation(len(MESHES))[:2]
    before, after = MESHES[first], MESHES[second]
    with several(folder / "logs", [*command, before[1]], before[0]) as victims:
        happened = victims[0].await_line("exit save", int(rng.integers(2, 5)))
        time.sleep(rng.uniform(0, 0.4))
        for victim in victims:
            victim.process.kill()
        for victim in victims:
            victim.wait()
    record: Record = {"phase": f"{before} to {after}", "start": newest_step(workdir)}
    if not happened:
        return record | {"outcome": "error", "note": victims[0].text()[-2000:]}
    return record | finish(folder, [*command, after[1]], after[0], truth, exact=False)


def finish(
    folder: Path, command: Sequence[str], number: int, truth: Truth, exact: bool = True
) -> Record:
    """Go on to the end, and compare with the truth."""
    failed = run_to_end(folder / "finish", command, number)
    if failed:
        return {"outcome": "error", "note": failed}
    if exact:
        difference = compare(folder / "run", truth)
        return {"outcome": "wrong" if difference else "to the bit", "note": difference}
    difference, largest = compare_roughly(folder / "run", truth)
    outcome = "wrong" if difference else "within tolerance"
    return {"outcome": outcome, "note": difference, "largest": largest}
