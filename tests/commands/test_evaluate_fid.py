"""`evaluate --features=inception`, with a network of three linear maps in its place."""

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from multistep_cm.commands.main import main
from multistep_cm.evaluation import classifier, evaluate, fid, inception
from multistep_cm.evaluation.inception_weights import SHA256, URL
from tests.evaluation import tiny

NUMBERS = ("fid", "sfid", "inception_score", "precision", "recall")
IMAGES = "--num_images=72"


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)


@pytest.fixture
def run(teacher_workdir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(teacher_workdir, tmp_path / "run")


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The option that names the weights; they and the network are small ones."""
    monkeypatch.setattr(fid, "NUM_FEATURES", tiny.POOL)
    monkeypatch.setattr(fid, "NUM_SPATIAL", tiny.SPATIAL)
    monkeypatch.setattr(inception, "taps", tiny.taps)
    with monkeypatch.context() as patch:
        load = "multistep_cm.evaluation.inception_weights.load_weights"
        patch.setattr(load, lambda path: tiny.make_params(64))
        yield "--inception_weights=weights.pth"


def measure(run: Path, *words: str) -> dict[str, Any]:
    assert main(["evaluate", f"--workdir={run}", IMAGES, *words]) == 0
    results: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return results


def test_a_reference_is_written_read_and_both_measure_the_same(
    run: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "digits.npz"
    words = ["--features=inception", weights]
    (row,) = measure(run, *words, f"--write_reference={path}")["rows"]
    said = capsys.readouterr().out
    assert f"wrote the reference of 1500 real images to {path}" in said
    assert "| FID " in said
    assert "Fréchet" not in said
    assert all(np.isfinite(row[name]) for name in NUMBERS)
    assert row["fid"] > 0
    assert row["num_images"] == 72
    assert row["fid_reference"] == "digits8 train"
    assert row["fid_reference_images"] == 1500
    assert row["inception_sha256"] == SHA256
    assert "frechet_distance" not in row
    with np.load(path) as file:
        assert set(file) == {"mu", "sigma", "mu_s", "sigma_s", "arr_0", "num_images"}
        assert file["arr_0"].shape == (1500, 8, 8, 1)

    (again,) = measure(run, *words, f"--reference={path}")["rows"]
    assert "digits.npz (sha256 " in again["fid_reference"]
    for name in NUMBERS:
        assert again[name] == pytest.approx(row[name], rel=1e-6), name


@pytest.mark.slow
def test_other_numbers_of_the_same_images_are_kept(
    run: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = functools.partial(classifier.TrainingSettings, num_steps=2)
    monkeypatch.setattr(classifier, "TrainingSettings", quick)
    first = measure(run)
    later = measure(run, "--features=inception", weights)
    (row,) = later["rows"]
    assert row["frechet_distance"] == first["rows"][0]["frechet_distance"]
    assert row["fid"] > 0
    assert later["floor"] == first["floor"]
    assert later["classifier_accuracy"] == first["classifier_accuracy"]
    # Other images: what was measured of the old ones is gone.
    (other,) = measure(run, "--features=inception", weights, "--seed=1")["rows"]
    assert other["seed"] == 1
    assert "frechet_distance" not in other
    (both,) = measure(run, "--features=classifier,inception", weights)["rows"]
    assert both["fid"] == pytest.approx(row["fid"], rel=1e-6)
    assert both["frechet_distance"] == row["frechet_distance"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "expected classifier, inception or"),
        (["--features=classifier", "--reference=a.npz"], "--reference is for FID"),
        (
            ["--features=classifier", "--inception_weights=a"],
            "add --features=inception",
        ),
        (["--features=inception"], f"get it from {URL}"),
        (["--features=inception"], f"sha256 {SHA256}"),
        (["--features=inception"], "--inception_weights=FILE"),
    ],
)
def test_what_is_refused_without_weights(
    run: Path,
    words: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate, "compile_generator", lambda *_: pytest.fail("went"))
    words = words or ["--features=fid"]
    assert main(["evaluate", f"--workdir={run}", IMAGES, *words]) == 2
    said = capsys.readouterr()
    assert expected in said.err
    assert said.err.count("\n") == 1
    assert not said.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--num_images=6"], "6 samples, but FID needs more than 6"),
        (["--reference=a.npz", "--write_reference=b.npz"], "give one of them"),
        (["--write_reference=b.npy"], "--write_reference is b.npy, expected FILE.npz"),
        (["--reference=none.npz"], "none.npz does not exist"),
        (["--write_reference=/dev/null/b.npz"], "--write_reference: folder /dev/null"),
    ],
)
def test_what_is_refused_before_anything_is_computed(
    run: Path,
    weights: str,
    words: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["evaluate", f"--workdir={run}", "--features=inception", weights]
    assert main([*command, *words]) == 2
    said = capsys.readouterr()
    assert expected in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_too_little_data_asks_for_a_reference(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1500 digits are fewer than the features of the real network."""
    words = ["--features=inception", "--inception_weights=w", "--num_images=2049"]
    assert main(["evaluate", f"--workdir={run}", *words]) == 2
    said = capsys.readouterr().err
    assert "1500 real images, but FID needs more than 2048" in said
    assert "--reference=FILE.npz" in said
