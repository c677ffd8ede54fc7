"""The benchmark of sampling: turns, ratios of rounds, and the samplers it compiles."""

import json
from pathlib import Path

import pytest

from benchmarks import sampling


def test_every_side_takes_its_turn_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    sides = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = sampling.measure(sides, rounds=2)
    assert calls == ["a", "b"] * 3
    assert [len(seconds[name]["wall"]) for name in sides] == [2, 2]


def test_ratios_are_of_the_same_round() -> None:
    record = {
        "images": 4,
        "steps": {"student": 2, "teacher": 8},
        "seconds": {
            "student": {"wall": [1.0, 2.0, 4.0], "cpu": [1.0, 1.0, 1.0]},
            "teacher": {"wall": [3.0, 6.0, 12.0], "cpu": [2.0, 2.0, 9.0]},
        },
        **{"jax": "1", "jaxlib": "2", "device": "cpu"},
    }
    text = sampling.table(record)
    assert "3.0 times faster by the clock and 2.0 times in CPU-seconds" in text
    assert "4 is the limit" in text


@pytest.mark.slow
def test_the_samplers_run_and_the_document_gets_the_table(tmp_path: Path) -> None:
    document, output = tmp_path / "document.md", tmp_path / "sampling.json"
    document.write_text("\n".join(sampling.MARKS))
    words = ["--student_steps=1", "--teacher_steps=2", "--images=2", "--rounds=1"]
    assert sampling.main([*words, f"--output={output}", f"--document={document}"]) == 0
    assert "| teacher | 2 |" in document.read_text()
    record = json.loads(output.read_text())
    assert all(t > 0 for side in record["seconds"].values() for t in side["wall"])


def test_impossible_steps_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert sampling.main(["--teacher_steps=0"]) == 1
    assert "num_steps is 0" in capsys.readouterr().err
