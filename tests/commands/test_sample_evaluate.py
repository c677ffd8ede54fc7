"""One tiny run through the three commands."""

import functools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from multistep_cm.commands.main import main
from multistep_cm.evaluation import classifier
from multistep_cm.training import setup
from tests.training.tiny import flags, tiny_config

STEPS = 4
FILE = "from multistep_cm.config import default_config\n\n\ndef get_config(_):\n"
NUM_IMAGES = 72


def words_of_training(workdir: Path, digits_directory: Path) -> list[str]:
    config = tiny_config(
        digits_directory,
        training__num_steps=STEPS,
        checkpoint__every_steps=2,
        sampling__num_previews=8,
        evaluation__batch_size=24,
    )
    file = workdir.parent / "some.py"
    file.write_text(f"{FILE}    return default_config()\n")
    return ["train", f"--config={file}", f"--workdir={workdir}", *flags(config)]


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    """Eight simulated ones wait for each other on a busy machine."""
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: first)
        yield


@pytest.fixture(scope="module")
def run(
    one_device: None,
    tmp_path_factory: pytest.TempPathFactory,
    digits_directory: Path,
) -> Path:
    """The workdir of a teacher that has seen four batches."""
    workdir = tmp_path_factory.mktemp("runs") / "teacher"
    assert main(words_of_training(workdir, digits_directory)) == 0
    return workdir


def sample(run: Path, output: Path, *words: str) -> None:
    assert main(["sample", f"--workdir={run}", f"--output={output}", *words]) == 0


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def test_a_run_holds_what_there_is_to_know(run: Path) -> None:
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert kept == {"2", "4"}
    assert json.loads((run / "config.json").read_text())["training"]["num_steps"] == 4
    assert "float32" in (run / "parameters.txt").read_text()
    with Image.open(run / "samples" / "4.png") as picture:
        assert picture.format == "PNG"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(np.isfinite(row["loss"]) for row in rows)


def test_a_finished_run_says_so(
    run: Path,
    digits_directory: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(setup, "build_step", lambda *_: pytest.fail("compiled"))
    assert main(words_of_training(run, digits_directory)) == 0
    said = capsys.readouterr().out
    assert f"nothing to train: step {STEPS} of {STEPS} is done" in said
    assert f"finished: {run}" in said


def test_samples_as_the_adm_evaluator_reads_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample(run, tmp_path / "a" / "samples.npz", "--num_images=21", "--num_steps=3")
    said = capsys.readouterr().out
    assert "wrote 21 images (step 4, 3 network calls)" in said
    found = arrays(tmp_path / "a" / "samples.npz")
    assert set(found) == {"arr_0", "arr_1"}
    images, labels = found["arr_0"], found["arr_1"]
    assert (images.shape, images.dtype) == ((21, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(labels, np.arange(21) % 10)
    assert len(np.unique(images.reshape(21, -1), axis=0)) == 21


def test_sigterm_leaves_no_half_of_a_file(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "grid.png"

    def save(image: Image.Image, path: Path, **_: Any) -> None:
        path.write_bytes(b"half of a picture")
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal was not noticed")

    monkeypatch.setattr(Image.Image, "save", save)
    words = [f"--workdir={run}", f"--output={output}", "--num_images=21"]
    assert main(["sample", *words, "--num_steps=3"]) == 143
    said = capsys.readouterr()
    assert "wrote" not in said.out
    assert said.err.splitlines()[-1].startswith(
        "multistep-cm sample: stopped by SIGTERM: a file is written whole or not at all"
    )
    assert not list(tmp_path.iterdir())


def test_an_image_depends_on_seed_label_and_index_only(
    run: Path, tmp_path: Path
) -> None:
    def images(name: str, *words: str) -> np.ndarray:
        path = tmp_path / f"{name}.npz"
        sample(run, path, *words)
        return arrays(path)["arr_0"].astype(int)

    many = images("many", "--num_images=20")
    # In batches of eight, of which the last is filled up.
    cut = images("cut", "--num_images=20", "--config.evaluation.batch_size=8")
    # Another program rounds otherwise, by at most one step of uint8.
    assert np.abs(many - cut).max() <= 1
    assert np.abs(many - images("seed", "--num_images=20", "--seed=1")).max() > 1


def test_labels_that_were_asked_for(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    sample(run, path, "--num_images=5", "--labels=7,3")
    np.testing.assert_array_equal(arrays(path)["arr_1"], [7, 3, 7, 3, 7])


def test_a_picture(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "grid.png"
    sample(run, path, "--num_images=20")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture))) > 2


def evaluate(run: Path, *words: str) -> dict[str, Any]:
    assert main(["evaluate", f"--workdir={run}", *words]) == 0
    results: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return results


def test_evaluation_keeps_a_row_for_each_way(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = functools.partial(classifier.TrainingSettings, num_steps=2)
    monkeypatch.setattr(classifier, "TrainingSettings", quick)
    cache = f"--classifier={tmp_path / 'classifier.npz'}"
    ways = ["--num_steps=2", "--sampler=ddim,addim"]
    results = evaluate(run, cache, *ways, f"--num_images={NUM_IMAGES}")
    said = capsys.readouterr().out
    assert "correct on held-out images" in said
    assert f"wrote {run / 'evaluation.json'}" in said
    assert results["floor"] > 0
    assert 0 <= results["classifier_accuracy"] <= 1
    rows = results["rows"]
    assert [row["method"] for row in rows] == ["teacher_ddim", "teacher_addim"]
    for row in rows:
        assert row["steps"] == row["network_calls"] == 2
        assert row["num_images"] == NUM_IMAGES
        assert row["train_step"] == STEPS
        assert row["frechet_distance"] > 0
        assert row["pixel_frechet_distance"] > 0
        assert 0 <= row["class_accuracy"] <= 1
        assert row["variance_ratio"] > 0
        assert row["images_per_second"] > 0
        assert (row["seed"], row["guidance_scale"]) == (0, 0.0)
        assert row["x_variance"] == "analytic"

    # The same way again replaces its row; the classifier is not trained again.
    monkeypatch.setattr(classifier, "train_classifier", lambda *_: pytest.fail("again"))
    again = evaluate(run, cache, *ways[:1], "--seed=1", f"--num_images={NUM_IMAGES}")
    assert [row["method"] for row in again["rows"]] == ["teacher_addim", "teacher_ddim"]
    assert again["rows"][0] == rows[1]
    assert again["rows"][1]["seed"] == 1
    assert again["floor"] == results["floor"]

    # A Fréchet distance of 64 features needs more images than that.
    monkeypatch.setattr(
        "multistep_cm.evaluation.evaluate.compile_generator",
        lambda *_: pytest.fail("compiled"),
    )
    capsys.readouterr()
    few = ["evaluate", f"--workdir={run}", cache, "--num_images=64"]
    assert main(few) == 2
    assert "num_images is 64, expected more than 64" in capsys.readouterr().err
