"""Records that do not decode: a sentence, or passed over where that is configured."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.faults.layout import EVERY, TEACHER, Record
from benchmarks.faults.processes import Victim, run_to_end, watched
from benchmarks.faults.truth import different_bits, rows_of, state_of

IMAGES = 60
CLASSES = 10
STEPS = 2 * EVERY
"""Of eight images each: all of them are read."""

ALLOWED = 0.1


def spoil_records(folder: Path, seed: Sequence[int]) -> Record:
    """Some images of a folder are damaged, then trained on in three ways.

    Without tolerance the run must end with a sentence that names one of them. With
    tolerance it must end, and be to the bit what a run is that was killed and resumed.
    """
    rng = np.random.default_rng(seed)
    data = folder / "data"
    bad = make_images(data, rng)
    cached = bool(rng.integers(2))
    values = {"data__name": "folder", "data__cache": cached}
    values |= {"training__num_steps": STEPS, "sampling__num_previews": 0}
    flags = TEACHER.flags(data, **values)
    record: Record = {"what": bad, "phase": "cached" if cached else "read at each step"}
    with watched(
        Victim(folder / "logs", ["train", f"--workdir={folder / 'strict'}", *flags])
    ) as victim:
        status, sentence = victim.wait(), victim.sentence()
    if status != 2 or not any(name in sentence for name in bad):
        note = f"{status}: {sentence or victim.text()[-2000:]}"
        return record | {"outcome": "error", "note": note}
    tolerant = [*flags, f"--config.data.bad_record_fraction={ALLOWED}"]
    whole, killed = (
        ["train", f"--workdir={folder / name}", *tolerant] for name in ("whole", "run")
    )
    failed = run_to_end(folder / "whole-logs", whole, devices=1)
    if failed:
        return record | {"outcome": "error", "note": failed}
    with watched(Victim(folder / "logs", killed)) as victim:
        victim.await_line("step", int(rng.integers(1, STEPS)))
        victim.stop()
    failed = run_to_end(folder / "run-logs", killed, devices=1)
    if failed:
        return record | {"outcome": "error", "note": failed}
    step, trees, position = state_of(folder / "run")
    true_step, true_trees, true_position = state_of(folder / "whole")
    difference = different_bits(trees, true_trees)
    if (step, position) != (true_step, true_position):
        difference = "step or position"
    elif rows_of(folder / "run") != rows_of(folder / "whole"):
        difference = "the metrics"
    outcome = "wrong" if difference else "to the bit"
    return record | {"outcome": outcome, "note": difference or sentence}


def make_images(folder: Path, rng: np.random.Generator) -> list[str]:
    """A folder of small PNG files; the names of some that are cut off or garbage."""
    shutil.rmtree(folder, ignore_errors=True)
    paths = []
    for number in range(IMAGES):
        path = folder / str(number % CLASSES) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(256, size=(8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        paths.append(path)
    bad = [paths[i] for i in rng.permutation(IMAGES)[: rng.integers(1, 4)]]
    for path in bad:
        content = path.read_bytes()
        kept = content[: int(rng.integers(len(content) // 2))]
        path.write_bytes(kept if rng.integers(2) else rng.bytes(len(content)))
    return [f"{path.parent.name}/{path.name}" for path in bad]
