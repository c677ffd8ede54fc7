"""The benchmark of growing costs: FLOPs that are known, and a tiny run."""

import json
from pathlib import Path

import jax
import pytest

from benchmarks.growth import axes as growing
from benchmarks.growth import run
from benchmarks.growth.axes import Axis
from multistep_cm.validation import validate
from tests.training.tiny import TINY


def test_every_size_is_a_run_that_works() -> None:
    for axis in growing.axes().values():
        assert len(axis.sizes) == len(axis.changes)
        for changes in axis.changes:
            validate(growing.make_config({**changes, "teacher.workdir": "any"}))


def test_levels_end_at_eight_pixels() -> None:
    assert growing.levels(16)["model.channels"] == (32, 64)
    assert growing.levels(64)["model.channels"] == (32, 64, 64, 64)


@pytest.mark.slow
def test_an_axis_of_devices_ends_with_those_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(growing, "BASE", {**TINY, "data.image_size": 8})
    sizes = (1, 2, 4 * jax.device_count())
    changes = [{"training.batch_size": 2 * n} for n in sizes]
    rows = run.measure(Axis("devices", sizes, changes, on_devices=True), rounds=1)
    assert [row["size"] for row in rows] == [1, 2]
    assert rows[1]["flops"] == 2 * rows[0]["flops"]


@pytest.mark.slow
def test_a_tiny_axis(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(growing, "BASE", {**TINY, "data.image_size": 8})
    steps = [{"consistency.student_steps": 1}, {"consistency.student_steps": 2}]
    axis = Axis("student_steps", (1, 2), steps, recompiles=False)
    monkeypatch.setattr(run, "axes", lambda: {"student_steps": axis})
    document = tmp_path / "page.md"
    document.write_text(f"before\n{run.BEGIN}\n{run.END}\nafter\n")
    options = ["--rounds=1", f"--output={tmp_path}", f"--document={document}"]
    assert run.main(options) == 0
    rows = json.loads((tmp_path / "growth.json").read_text())["axes"]["student_steps"]
    # One program and the same work, whatever the student's number of steps.
    assert rows[0]["flops"] == rows[1]["flops"] > 0
    assert all(row["median"] > 0 for row in rows)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert "| student_steps | GFLOPs a step |" in document.read_text()
    printed = capsys.readouterr().out
    assert "| student_steps | GFLOPs a step |" in printed and "| 1.00 |" in printed


def test_an_axis_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--axes=batch,colour"]) == 1
    assert "--axes has 'colour', expected some of" in capsys.readouterr().err


def test_no_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--rounds=0"]) == 1
    assert "--rounds is 0, expected at least 1" in capsys.readouterr().err
