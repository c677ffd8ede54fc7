"""Where a run lives turns against it: its disk, its folder, its clock."""

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.faults.layout import Record
from benchmarks.faults.processes import TRACEBACK, Victim, run_to_end, watched
from benchmarks.faults.truth import Truth, compare

POWERLESS = ("setpriv", "--bounding-set=-all")
"""Before a command of root: for it too a folder can be read-only then."""

ROOM = (20, 1000)
"""KiB of a disk on which no run of these finishes: each save takes some 300."""

DAY = 86400


def fill_disk(folder: Path, truth: Truth, data: Path, seed: Sequence[int]) -> Record:
    """A disk of random size is full; later it is larger."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(*ROOM))
    with small_disk(folder / "disk", size) as disk:
        command = _command(truth, data, disk / "run")
        record = _fails(folder, command) | {"phase": f"{size} KiB"}
        mount("-o", "remount,size=256m", str(disk))
        return record | _goes_on(folder, command, disk / "run", truth, record)


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A file system of this size in memory; needs root."""
    folder.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def mount(*arguments: str) -> None:
    """The system's `mount`."""
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def may_mount(folder: Path) -> bool:
    """Whether this user may."""
    try:
        with small_disk(folder / "mount", 64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        shutil.rmtree(folder / "mount", ignore_errors=True)


def lock_folder(folder: Path, truth: Truth, data: Path, seed: Sequence[int]) -> Record:
    """The workdir becomes read-only in the middle of a run; later it is writable."""
    rng = np.random.default_rng(seed)
    workdir = folder / "run"
    workdir.mkdir(parents=True)
    prefix = POWERLESS if os.getuid() == 0 else ()
    command = _command(truth, data, workdir)
    event = str(rng.choice(["enter restore", "enter compile", "step", "exit save"]))
    times = int(rng.integers(1, 6)) if event in ("step", "exit save") else 1
    with watched(Victim(folder / "logs", command, prefix=prefix)) as victim:
        victim.await_line(event, times)
        time.sleep(rng.uniform(0, 0.2))
        for path in (workdir, workdir / "checkpoints", workdir / "samples"):
            if path.is_dir():
                path.chmod(0o555)
        record = _how_it_ended(victim) | {"phase": f"{event} {times}"}
    for path in (workdir, workdir / "checkpoints", workdir / "samples"):
        if path.is_dir():
            path.chmod(0o755)
    return record | _goes_on(folder, command, workdir, truth, record)


def move_clock(folder: Path, truth: Truth, data: Path, seed: Sequence[int]) -> Record:
    """The clock jumps by days to and fro, and so do the times of all files."""
    rng = np.random.default_rng(seed)
    workdir = folder / "run"
    command = _command(truth, data, workdir)
    variables = {"FAULTS_CLOCK": f"{rng.integers(2**31)}"}
    victim = Victim(folder / "logs", command, variables=variables)
    with watched(victim):
        victim.await_line("exit save", int(rng.integers(2, 5)))
        time.sleep(rng.uniform(0, 0.4))
        victim.stop()
    draw = random.Random(int(rng.integers(2**31)))
    for path in [*workdir.rglob("*"), workdir]:
        moment = time.time() + draw.uniform(-400, 400) * DAY
        os.utime(path, (moment, moment))
    record: Record = {"phase": victim.phase(), "start": victim.steps()}
    with watched(Victim(folder / "logs", command, variables=variables)) as victim:
        status = victim.wait()
        record |= {"resumed": victim.steps()}
        if status != 0:
            # Orbax takes a jump during a save for that much time: the run may end.
            record |= _how_it_ended(victim)
            return record | _goes_on(folder, command, workdir, truth, record)
    difference = compare(workdir, truth)
    outcome = "wrong" if difference else "to the bit"
    return record | {"outcome": outcome, "note": difference}


def _command(truth: Truth, data: Path, workdir: Path) -> list[str]:
    flags = truth.variant.flags(data, training__num_steps=truth.last)
    return ["train", f"--workdir={workdir}", *flags]


def _fails(folder: Path, command: Sequence[str]) -> Record:
    with watched(Victim(folder / "logs", command)) as victim:
        return _how_it_ended(victim)


def _how_it_ended(victim: Victim) -> Record:
    """A run that should end with a sentence; the outcome is `sentence` if it did."""
    status = victim.wait()
    sentence = victim.sentence()
    said = sentence or victim.text()[-3000:]
    if status == 0:
        return {"outcome": "error", "note": f"it did not fail: {said}"}
    if status is None or not sentence:
        return {"outcome": "error", "note": f"{status}: {said}"}
    noise = victim.text().count(TRACEBACK)
    return {"outcome": "sentence", "note": sentence, "tracebacks": noise}


def _goes_on(
    folder: Path, command: Sequence[str], workdir: Path, truth: Truth, record: Record
) -> Record:
    """The same command goes on when the fault is gone, and ends as the truth does."""
    failed = run_to_end(folder / "finish", command, devices=1)
    if failed:
        return {"outcome": "error", "note": f"does not go on: {failed}"}
    difference = compare(workdir, truth)
    if difference:
        return {"outcome": "wrong", "note": difference}
    return {"outcome": "to the bit" if record["outcome"] == "sentence" else "error"}
