"""Checkpoints that are damaged, then verified and restored as `train` does it.

  python -m benchmarks.faults.corruption FOLDER SEED FIRST LAST

is a process of eight simulated devices that tries these trials and prints a line of
JSON for each: apart, so that nothing that damage may do ends the campaign.
"""

import json
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.faults.damage import WAYS, same_files
from benchmarks.faults.layout import Record
from benchmarks.faults.truth import different_bits, host
from multistep_cm.checkpoints import Checkpoints, Trees
from multistep_cm.errors import UserError
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from multistep_cm.workdir import read_config

HOW_MANY = (1, 1, 1, 1, 1, 1, 2, 2, 3)
"""Of the newest steps that are damaged, one number for each equally likely case."""


class Pristine:
    """A finished run whose checkpoints are good, and all that they hold.

    Attributes:
        steps: the saved ones, increasing.
        trees: of each step, on the host.
    """

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.config = read_config(workdir)
        devices = jax.devices()
        if self.config.mesh.fsdp == 1:
            devices = devices[:1]
        self.mesh: Mesh = make_mesh(self.config.mesh, devices)
        self.targets = setup.split_state(setup.abstract_state(self.config, self.mesh))
        folders = (workdir / "checkpoints").iterdir()
        self.steps = sorted(int(path.name) for path in folders)
        self.trees: dict[int, Trees] = {}
        self.positions: dict[int, Any] = {}
        for step in self.steps:
            folder = workdir / "checkpoints" / str(step) / "data" / "metadata"
            self.positions[step] = json.loads(folder.read_text())
            with Checkpoints(workdir) as checkpoints:
                found, reason = checkpoints._try(step, self.targets)
            if found is None:
                raise UserError(f"{workdir}: step {step} is not pristine ({reason})")
            self.trees[step] = host(found.trees)

    def save(self, checkpoints: Checkpoints, step: int) -> None:
        """The true state of a step, as the run that comes to it again saves it."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.targets)
        trees = jax.device_put(self.trees[step], shardings)
        values = self.config.to_dict()
        checkpoints.save(step, trees, self.positions[step], values)
        checkpoints.wait()

    def difference(self, found: tuple[int, Trees, Any]) -> str:
        """In what restored values differ from those of that step; "" for nothing."""
        step, trees, position = found
        if position != self.positions[step]:
            return "the data position"
        return different_bits(host(trees), self.trees[step])


def try_damage(pristine: Pristine, folder: Path, seed: Sequence[int]) -> Record:
    """One trial: copy, damage, verify, restore, save again, restore again."""
    rng = np.random.default_rng(seed)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pristine.workdir / "checkpoints", folder / "checkpoints")
    weights = np.array([weight for _, weight in WAYS.values()])
    damaged = pristine.steps[-HOW_MANY[rng.integers(len(HOW_MANY))] :]
    done, way, what = [], "", ""
    for step in reversed(damaged):
        steps = [other for other in pristine.steps if other != step]
        other = pristine.workdir / "checkpoints" / str(rng.choice(steps))
        place = folder / "checkpoints" / str(step)
        # What another step holds may be the same: then another damage is drawn.
        while same_files(place, pristine.workdir / "checkpoints" / str(step)):
            way = str(rng.choice([*WAYS], p=weights / weights.sum()))
            what = WAYS[way][0](rng, place, other)
        done.append(f"step {step}, {way}, {what}")
    record: Record = {
        "kind": "damage",
        "layout": pristine.workdir.name,
        "number": seed[-1],
        "way": way if len(damaged) == 1 else f"{len(damaged)} steps",
        "what": done,
    }
    return record | _restore(pristine, folder, damaged)


def _restore(pristine: Pristine, folder: Path, damaged: list[int]) -> Record:
    """What verifying and restoring make of it."""
    with Checkpoints(folder) as checkpoints:
        verified = dict(checkpoints.verify(pristine.mesh))
    newest = pristine.steps[-1]
    with Checkpoints(folder, keep=3) as checkpoints:
        try:
            found = checkpoints.restore(pristine.targets)
        except UserError as error:
            lost = len(damaged) < len(pristine.steps)
            note = f"{'though an older step is good: ' if lost else ''}{error}"
            return {"outcome": "sentence", "note": note, "weak": lost}
        if found is None:
            return {"outcome": "wrong", "note": "nothing was found: a new run begins"}
        step = found[0]
        difference = pristine.difference(found)
        if difference:
            return {"outcome": "wrong", "note": f"step {step}: {difference}"}
        good = [number for number, reason in verified.items() if not reason]
        if not good or max(good) != step:
            return {"outcome": "wrong", "note": f"{step} used, verified: {verified}"}
        if step == newest:
            return {"outcome": "harmless"}
        expected = max((n for n in pristine.steps if n not in damaged), default=None)
        if expected is not None and step < expected:
            return {"outcome": "error", "note": f"{step} used, {expected} is good"}
        pristine.save(checkpoints, newest)
        again = checkpoints.restore(pristine.targets)
    if again is None or again[0] != newest or pristine.difference(again):
        return {"outcome": "error", "note": "what was saved again is not there"}
    reasons = [verified[number] for number in verified if number > step]
    return {"outcome": "set aside", "note": reasons[0] if reasons else ""}


def main(argv: Sequence[str]) -> None:
    """Try trials FIRST to LAST, a line for each."""
    folder, seed, first, last = Path(argv[0]), *argv[1:]
    warnings.simplefilter("ignore")
    pristine = [Pristine(path) for path in sorted((folder / "pristine").iterdir())]
    print("ready", flush=True)
    for number in range(int(first), int(last)):
        chosen = pristine[number % len(pristine)]
        record = try_damage(chosen, folder / "damaged", [int(seed), 2, number])
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
