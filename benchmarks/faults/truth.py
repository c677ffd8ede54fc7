"""Runs that nobody disturbed, and whether a disturbed one ended as they did."""

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.faults.layout import Variant
from benchmarks.faults.processes import read_log, run_to_end
from multistep_cm import digests
from multistep_cm.checkpoints import Checkpoints, Trees
from multistep_cm.errors import UserError
from multistep_cm.reporting.metrics import read_jsonl
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from multistep_cm.workdir import read_config

MEASURED = ("images_per_second", "mfu")
"""Columns of the metrics that differ from run to run: speeds."""

OWN_FILES = re.compile(
    r"config\.json|parameters\.txt|metrics\.jsonl|events\.out\.tfevents\..*"
    r"|samples(/\d+\.png)?|checkpoints(/\d+(/.*)?)?"
)
"""What a finished run's folder holds; anything else was left behind."""


LEFT = "left behind"

TOLERANCE = 2e-5
"""Of values and (relative) of losses on another mesh, where sums over devices are
ordered differently; float32 rounds at 6e-8, and parameters move by up to 6e-2.
"""


@dataclasses.dataclass(frozen=True)
class Usual:
    """How a run goes that is saved as often as those that are disturbed.

    Attributes:
        seconds: of the whole.
        phases: name to seconds, of each time that it was entered.
        files: class of operation on files to how many there were.
    """

    seconds: float
    phases: Mapping[str, Sequence[float]]
    files: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Truth:
    """An uninterrupted run that saved every step.

    Attributes:
        digests: of each step, by tree and leaf, with that of the data position.
        trees: of the last step.
    """

    variant: Variant
    workdir: Path
    last: int
    digests: Mapping[int, Mapping[str, Any]]
    trees: Trees
    usual: Usual


def state_of(workdir: Path, mesh: Mesh | None = None) -> tuple[int, Trees, Any]:
    """Step, trees and data position of the newest checkpoint, read here, verified."""
    config = read_config(workdir)
    if mesh is None:
        config.mesh.update(data=-1, fsdp=1, tensor=1)
        mesh = make_mesh(config.mesh, jax.devices()[:1])
    with Checkpoints(workdir) as checkpoints:
        found = setup.restore_state(checkpoints, config, mesh)
    if found is None:
        raise UserError(f"{workdir} holds no checkpoint")
    state, position = found
    return int(state.step), host(setup.split_state(state)), position


def host(trees: Trees) -> Trees:
    """As numpy arrays."""
    return {name: jax.tree.map(np.asarray, tree) for name, tree in trees.items()}


def make_truth(
    variant: Variant, folder: Path, data: Path, last: int, number: int = 1
) -> Truth:
    """Run it twice without disturbance, with a save after every call and as usual.

    In `number` processes; several have eight devices, one has one.

    Raises UserError when the two do not agree to the bit.
    """
    shutil.rmtree(folder, ignore_errors=True)
    often, usual = folder / "often", folder / "usual"
    changes: dict[Path, dict[str, Any]] = {
        often: {"checkpoint__every_steps": variant.per_call, "checkpoint__keep": 999},
        usual: {},
    }
    for workdir, changed in changes.items():
        flags = variant.flags(data, training__num_steps=last, **changed)
        command = ["train", f"--workdir={workdir / 'run'}", *flags]
        devices = 8 if number > 1 else 1
        failed = run_to_end(folder / workdir.name, command, number, devices)
        if failed:
            raise UserError(f"the reference run failed:\n{failed}")
    step, trees, _ = state_of(often / "run")
    if step != last:
        raise UserError(f"the reference run ended at step {step}, expected {last}")
    log = usual / f"0-of-{number}" / "0.log"
    usually = _usual(read_log(log, 0.0))
    recorded = recorded_digests(often / "run")
    truth = Truth(variant, often / "run", last, recorded, trees, usually)
    difference = compare(usual / "run", truth)
    if difference:
        raise UserError(f"two runs without a fault differ: {difference}")
    return truth


def _usual(lines: Sequence[tuple[float, str]]) -> Usual:
    begins: dict[str, float] = {}
    phases: dict[str, list[float]] = {}
    files: dict[str, int] = {"any": 0}
    for moment, line in lines:
        word, _, name = line.partition(" ")
        if word == "enter":
            begins[name] = moment
        elif word == "exit":
            phases.setdefault(name, []).append(moment - begins[name])
        elif word == "step":
            phases.setdefault("step", []).append(0.0)
        elif word == "file":
            files[name] = files.get(name, 0) + 1
            files["any"] += 1
    return Usual(lines[-1][0] - lines[0][0], phases, files)


def recorded_digests(workdir: Path) -> dict[int, dict[str, Any]]:
    """Of each step, without those of the config, which differ in how often it saves.

    A save that was killed has a folder with a longer name: it is no step.
    """
    found = {}
    for path in (workdir / "checkpoints").glob("*/digests/metadata"):
        if not path.parts[-3].isdecimal():
            continue
        values = json.loads(path.read_text())
        values.pop("config")
        found[int(path.parts[-3])] = values
    return found


def different_bits(found: Trees, expected: Trees) -> str:
    """The first leaf whose shape, dtype or bits differ, or an empty string."""
    a, b = (
        {
            f"{name}{key}": np.asarray(leaf)
            for name, tree in trees.items()
            for key, leaf in digests.leaf_names(tree)
        }
        for trees in (found, expected)
    )
    for key in sorted(a.keys() | b.keys()):
        if key not in a or key not in b:
            return f"{key} is missing"
        if a[key].dtype != b[key].dtype or a[key].shape != b[key].shape:
            return f"{key} has another shape or dtype"
        if a[key].tobytes() != b[key].tobytes():
            return f"{key} has other bits"
    return ""


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    """The metrics without speeds."""
    return [
        {key: value for key, value in row.items() if key not in MEASURED}
        for row in read_jsonl(workdir / "metrics.jsonl")
    ]


def compare(workdir: Path, truth: Truth) -> str:
    """In what a finished run differs from the truth; an empty string for nothing.

    All trees of the last step by their bits, the digests of all steps that are still
    there (the data position's among them), the rows of the metrics, the pictures, and
    what lies in the folder that should not.
    """
    step, trees, _ = state_of(workdir)
    if step != truth.last:
        return f"the newest step is {step}, expected {truth.last}"
    difference = different_bits(trees, truth.trees)
    if difference:
        return difference
    for number, found in recorded_digests(workdir).items():
        if found != truth.digests[number]:
            return f"step {number} has other digests"
    found_rows, expected_rows = rows_of(workdir), rows_of(truth.workdir)
    steps = [row["step"] for row in found_rows]
    if truth.variant.per_call > 1:
        # A stop writes the row that it interrupts, so that two halves stand for it.
        found_rows = [row for row in found_rows if row in expected_rows]
        if steps != sorted(set(steps)):
            return f"the metrics have the steps {steps}"
    elif found_rows != expected_rows:
        return f"the metrics have other rows, of the steps {steps}"
    for path in sorted(truth.workdir.glob("samples/*")):
        if path.read_bytes() != (workdir / "samples" / path.name).read_bytes():
            return f"{path.name} is another picture"
    left = leftovers(workdir)
    return f"{LEFT}: {', '.join(left)}" if left else ""


def compare_roughly(workdir: Path, truth: Truth) -> tuple[str, float]:
    """The same for a run on another mesh: in what it differs by more than `TOLERANCE`.

    Also the largest difference of any value of any tree.
    """
    step, trees, position = state_of(workdir)
    true_step, _, true_position = state_of(truth.workdir)
    if (step, position) != (true_step, true_position):
        return f"step and position are {step}, {position}", 0.0
    pairs = zip(jax.tree.leaves(trees), jax.tree.leaves(truth.trees), strict=True)
    largest = max(float(np.abs(a - b).max()) for a, b in pairs)
    found, expected = rows_of(workdir), rows_of(truth.workdir)
    if [row["step"] for row in found] != [row["step"] for row in expected]:
        return "the metrics have rows of other steps", largest
    a, b = ([row["loss"] for row in rows] for rows in (found, expected))
    if not np.allclose(a, b, rtol=TOLERANCE, atol=0):
        return "the losses differ", largest
    return ("" if largest <= TOLERANCE else f"values differ by {largest}"), largest


def newest_step(workdir: Path) -> int:
    """Of those that are listed; 0 for none."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def leftovers(workdir: Path) -> list[str]:
    """Names in a run's folder that a finished run does not have."""
    names = [str(path.relative_to(workdir)) for path in sorted(workdir.rglob("*"))]
    return [name for name in names if not OWN_FILES.fullmatch(name)]
