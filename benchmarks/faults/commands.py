"""Commands that write results, killed and repeated; data that does not decode."""

import json
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.layout import Record
from benchmarks.faults.processes import Victim, run_to_end, watched
from benchmarks.faults.truth import MEASURED, Truth, leftovers

OUTPUTS = {"evaluate": "evaluation.json", "sample": "samples/sample.npz"}
"""The command to the file in the workdir that it writes."""

OTHERS = ("classifier.npz", "evaluation.json.lock")
"""What `evaluate` keeps beside it, and what a kill in the last moment leaves: an empty
file for which nobody waits, and which the next row that is written removes.
"""


def command_of(name: str, workdir: Path) -> list[str]:
    """The arguments of the command."""
    output = workdir / OUTPUTS[name]
    more = [f"--output={output}"] if name == "sample" else ["--num_steps=1,2"]
    return [name, f"--workdir={workdir}", "--num_images=96", *more]


def read_output(name: str, workdir: Path) -> Any:
    """What the command wrote, without speeds; raises ValueError for half a file."""
    path = workdir / OUTPUTS[name]
    if name == "sample":
        with np.load(path) as arrays:
            return {key: arrays[key].tobytes() for key in arrays}
    results = json.loads(path.read_text())
    for row in results["rows"]:
        for key in (*MEASURED, "seconds"):
            row.pop(key, None)
    return results


def kill_command(folder: Path, truth: Truth, seed: Sequence[int]) -> Record:
    """Kill a command at a random moment, repeat it, compare what it writes.

    In two of three trials before an operation on files, where half a file could stay.
    """
    rng = np.random.default_rng(seed)
    name = str(rng.choice([*OUTPUTS]))
    source = truth.workdir.parents[1] / "usual" / "run"
    whole, killed = folder / "whole", folder / "run"
    for workdir in (whole, killed):
        shutil.copytree(source, workdir)
    log = folder / "logs" / "whole"
    begin = time.monotonic()
    failed = run_to_end(log, command_of(name, whole), devices=1)
    seconds = time.monotonic() - begin
    if failed:
        return {"outcome": "error", "note": failed}
    text = (log / "0-of-1" / "0.log").read_text()
    most = sum(" file " in line for line in text.splitlines())
    self_kill = "-"
    if most and rng.integers(3):
        self_kill = f"any:{rng.integers(1, most + 1)}:{int(signal.SIGKILL)}"
    command = command_of(name, killed)
    with watched(Victim(folder / "logs" / "killed", command, self_kill)) as victim:
        if self_kill == "-":
            time.sleep(rng.uniform(0, seconds))
            victim.stop()
        victim.wait()
        record: Record = {"aim": self_kill, "phase": f"{name}: {victim.phase()}"}
    if (killed / OUTPUTS[name]).exists():
        read_output(name, killed)  # whole, or the campaign ends here
    failed = run_to_end(folder / "logs" / "again", command, devices=1)
    if failed:
        return record | {"outcome": "error", "note": failed}
    if read_output(name, killed) != read_output(name, whole):
        return record | {"outcome": "wrong", "note": "other results"}
    left = set(leftovers(killed)) - {*OUTPUTS.values(), *OTHERS}
    if left:
        return record | {"outcome": "error", "note": f"left behind: {sorted(left)}"}
    return record | {"outcome": "to the bit"}
