"""Training runs that are killed again and again, each time in another phase.

A chain is one run in one folder: started, killed, started again .., and let finish at
the end. Each kill that hit is a trial. It is good when the next start went on from the
newest step whose save was finished, with the digests that the undisturbed run has of
that step, and when the chain ended as the undisturbed run did (`truth.compare`).
"""

import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.faults.forks import Server
from benchmarks.faults.layout import EVERY, Record
from benchmarks.faults.processes import TRACEBACK, Victim, watched
from benchmarks.faults.truth import (
    LEFT,
    Truth,
    compare,
    newest_step,
    recorded_digests,
)

KILLS = 7
"""The most in one chain."""

FILE_AIMS = ("remove", "rename", "create", "any")
AIMS = (
    *("time", "import", "restore", "init", "compile", "step", "save", "sampling"),
    *("write", "remove", *FILE_AIMS),
)
"""Where a kill aims. The first row from outside, in a phase or anywhere in time; then
while a save is written in the background, and before one operation on files.
"""

MISSED = "missed"
"""The run had finished before the kill: no trial."""

WRITING = 0.4
"""Seconds in which a save of these runs is written, at most; on a busy machine more."""


def run_chain(
    folder: Path,
    truth: Truth,
    data: Path,
    seed: Sequence[int],
    kind: str,
    kills: int = KILLS,
    aims: Sequence[str] = AIMS,
    server: Server | None = None,
) -> list[Record]:
    """At most so many kills of one run; a record of each that hit.

    With a server, processes are forked, but for those that are killed while they
    import or at any time.
    """
    rng = np.random.default_rng(seed)
    shutil.rmtree(folder, ignore_errors=True)
    workdir = folder / "run"
    flags = truth.variant.flags(data, training__num_steps=truth.last)
    command = ["train", f"--workdir={workdir}", *flags]
    number = signal.SIGKILL if kind == "kill" else signal.SIGTERM
    records: list[Record] = []
    for _ in range(kills):
        aim = str(rng.choice(aims))
        if not records and aim == "restore":
            aim = "init"
        forks = None if aim in ("time", "import") else server
        record = _kill_once(folder, command, truth, rng, aim, number, forks)
        _judge(records, record["start"], truth, workdir)
        if record["outcome"] == MISSED:
            break
        records.append(record)
        if record["outcome"] != "to the bit":
            break
    _finish(folder / "logs", command, truth, workdir, records, server)
    facts = {"kind": kind, "variant": truth.variant.name, "chain": [*seed]}
    return [facts | record for record in records]


def _kill_once(
    folder: Path,
    command: list[str],
    truth: Truth,
    rng: np.random.Generator,
    aim: str,
    number: signal.Signals,
    server: Server | None,
) -> Record:
    """Start and kill; `outcome` is what is known yet."""
    self_kill = "-"
    if aim in FILE_AIMS:
        most = truth.usual.files[aim]
        self_kill = f"{aim}:{rng.integers(1, most + 1)}:{int(number)}"
    # Programs that are read from a cache are not compiled.
    variables = {"FAULTS_NO_CACHE": "1"} if aim == "compile" else None
    with watched(
        Victim(folder / "logs", command, self_kill, variables=variables, server=server)
    ) as victim:
        if self_kill == "-" and _await_moment(victim, truth, rng, aim):
            victim.send(number)
        status = victim.wait()
        said = victim.text()
    record = _facts(victim, truth, folder / "run")
    record |= {"aim": aim, "in_order": status == 0}
    if status == 0 and "finished: " in said:
        return record | {"outcome": MISSED}
    if status == -number or (status == 0 and "stopped by SIGTERM" in said):
        return record | {"outcome": "to the bit"}
    sentence = victim.sentence()
    note = f"{status}: {sentence or said[-2000:]}"
    return record | {"outcome": "sentence" if sentence else "error", "note": note}


def _facts(victim: Victim, truth: Truth, workdir: Path) -> Record:
    """Where it was when it ended, and what it left behind."""
    newest = newest_step(workdir)
    lines = [line for _, line in victim.lines()]
    start, per_call = victim.steps(), truth.variant.per_call
    reached = (start or 0) + lines.count("step") * per_call
    saves = [number for number, line in enumerate(lines) if line == "enter save"]
    begun = (start or 0) + lines[: saves[-1]].count("step") * per_call if saves else 0
    removed = [line.partition(" ")[2] for line in lines if line.startswith("removes ")]
    background = "writing" if begun > newest else ""
    if any(Path(path).exists() for path in removed):
        background = "removing"
    return {
        "phase": victim.phase(),
        "background": background,
        "start": start,
        "expected": newest,
        "reached": reached,
        "repeated": max(0, reached - newest),
        "unfinished_save": begun > newest,
        "seconds": round(victim.lines()[-1][0], 2),
    }


def _await_moment(
    victim: Victim, truth: Truth, rng: np.random.Generator, aim: str
) -> bool:
    """Sleep until the kill; False when the process ended before."""
    usual = truth.usual
    if aim in ("time", "import"):
        whole = usual.seconds if aim == "time" else usual.phases["start-up"][0]
        time.sleep(rng.uniform(0, whole))
        return True
    event = {"write": "exit save", "step": "step"}.get(aim, f"enter {aim}")
    times = usual.phases["save" if aim == "write" else aim]
    # In the first third of the run, so that some of it is left for other kills.
    most = max(1, len(times) // 3)
    happened = victim.await_line(event, int(rng.integers(1, most + 1)))
    time.sleep(rng.uniform(0, WRITING if aim == "write" else max(times)))
    return happened


def _judge(
    records: list[Record], resumed: int | None, truth: Truth, workdir: Path
) -> None:
    """Say of the kills that no start had survived yet whether this one was right."""
    for record in records:
        if resumed is None or "resumed" in record:
            continue
        record["resumed"] = resumed
        # A save in the background is late by less than one interval.
        most = EVERY * (0 if record["in_order"] else 1 + record["unfinished_save"])
        found = recorded_digests(workdir).get(resumed)
        if found is not None and found != truth.digests[resumed]:
            record |= {"outcome": "wrong", "note": f"step {resumed} has other digests"}
        elif resumed != record["expected"]:
            record |= {"outcome": "error", "note": "the newest save was not used"}
        elif record["repeated"] > most:
            record |= {"outcome": "error", "note": "too much work was repeated"}


def _finish(
    logs: Path,
    command: list[str],
    truth: Truth,
    workdir: Path,
    records: list[Record],
    server: Server | None,
) -> None:
    """Let the run end, and compare it with the truth: that holds for all its kills."""
    with watched(Victim(logs, command, server=server)) as victim:
        status = victim.wait()
        said = victim.text()
        start = victim.steps()
    difference, outcome = f"{status}: {said[-2000:]}", "error"
    if status == 0 and TRACEBACK not in said:
        difference = compare(workdir, truth)
        outcome = "error" if difference.startswith(LEFT) else "wrong"
    _judge(records, start, truth, workdir)
    for record in records:
        if difference and record["outcome"] == "to the bit":
            record |= {"outcome": outcome, "note": difference}
