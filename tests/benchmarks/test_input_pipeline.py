"""The benchmark of the input pipeline in tiny form."""

import json
from pathlib import Path

import pytest

from benchmarks import input_pipeline


def test_tiny(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.json"
    words = ["--threads", "2", "--sizes", "8", "--batch=4", "--batches=2"]
    assert input_pipeline.main([*words, "--need=100", f"--output={output}"]) == 0
    printed = capsys.readouterr().out
    assert "| JPEG of 469x387 to 8 pixels | 2 |" in printed
    assert "Needed by --need: 100 images/s" in printed
    rows = json.loads(output.read_text())["rows"]
    assert [row["images"] for row in rows] == [8, 8]


def test_cores_that_a_step_needs() -> None:
    row: input_pipeline.Row = {"source": "JPEG", "threads": 2, "images": 100}
    row |= {"cpu_seconds": 0.5, "wall_seconds": 0.25}
    text = input_pipeline.table([row], {"a run": 300.0})
    assert "| JPEG | 2 | 400 | 200 |" in text
    assert text.endswith("Needed by a run: 300 images/s, or 1.5 cores for JPEG.")
