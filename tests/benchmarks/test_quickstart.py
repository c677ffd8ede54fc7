"""The quickstart's whole path, with runs of a few steps."""

import json
from pathlib import Path

import jax
import pytest

from benchmarks import quickstart
from benchmarks.quickstart import main
from multistep_cm.evaluation import classifier

STUDENTS = (("cd", 2), ("ct", 1))
TINY = {
    "data.directory": "",
    "model.channels": "(8,)",
    "model.blocks": "(1,)",
    "model.attention_resolutions": "()",
    "model.head_dim": "8",
    "model.condition_width": "16",
    "training.num_steps": "4",
    "training.batch_size": "16",
    "training.log_every": "2",
    "checkpoint.every_steps": "2",
    "sampling.num_steps": "2",
    "evaluation.num_images": "70",
    "evaluation.batch_size": "80",
}


def test_the_whole_job(
    tmp_path: Path,
    digits_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(quickstart, "STUDENTS", STUDENTS)
    one_device = jax.devices()[:1]  # a mesh of one compiles faster
    monkeypatch.setattr(jax, "devices", lambda: one_device)
    quick = classifier.TrainingSettings(num_steps=2, batch_size=16)
    monkeypatch.setattr(classifier, "TrainingSettings", lambda: quick)
    keys = {**TINY, "data.directory": str(digits_directory)}
    overrides = [f"--config.{key}={value}" for key, value in keys.items()]
    arguments = [f"--workdir={tmp_path}", *overrides]

    assert main(arguments) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    methods = [(row["method"], row["steps"]) for row in results["rows"]]
    assert methods == [("teacher_ddim", 2), ("teacher_addim", 2), *STUDENTS]
    for row in results["rows"]:
        assert row["network_calls"] == row["steps"]
        assert row["frechet_distance"] > 0
        assert 0 <= row["class_accuracy"] <= 1
        assert row["variance_ratio"] > 0
        assert row["images_per_second"] > 0
    assert results["floor"] > 0
    assert (tmp_path / "samples.png").stat().st_size > 0
    page = (tmp_path / "report.html").read_text()
    for row in results["rows"]:
        assert f'value="{row["frechet_distance"]!r}"' in page
    # Samples of four ways and real ones, and the trajectories of three runs.
    assert page.count("data:image/png;base64,") == 1 + len(methods) + 3 * 2 * 3
    said = capsys.readouterr().out
    assert "samples.png" in said
    assert "report.html" in said

    # A second time nothing is trained again.
    written = (tmp_path / "cd2" / "metrics.jsonl").read_bytes()
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("nothing to train") == 1 + len(STUDENTS)
    assert (tmp_path / "cd2" / "metrics.jsonl").read_bytes() == written


def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config.model.chanels=(8,)"]) == 2
    error = capsys.readouterr().err
    assert "model.channels" in error
    assert error.count("\n") == 1
