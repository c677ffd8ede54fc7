"""One `evaluate` for several runs, stopped on the way and started again."""

import functools
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
import pytest

from multistep_cm import config as configs
from multistep_cm.checkpoints import Checkpoints
from multistep_cm.commands.evaluate import STOPPED
from multistep_cm.commands.main import main
from multistep_cm.evaluation import classifier, evaluate
from multistep_cm.sharding.mesh import make_mesh
from tests.training.tiny import noisy_params, tiny_config

NUM_IMAGES = 72
SHA256 = re.compile("[0-9a-f]{64}")

Runs: TypeAlias = tuple[Path, Path]
"""A teacher, and a student of two steps."""

Measure: TypeAlias = Callable[..., int]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)
    settings = functools.partial(classifier.TrainingSettings, num_steps=2)
    monkeypatch.setattr(classifier, "TrainingSettings", settings)


@pytest.fixture
def runs(teacher_workdir: Path, tmp_path: Path, digits_directory: Path) -> Runs:
    teacher = shutil.copytree(teacher_workdir, tmp_path / "teacher")
    config = tiny_config(digits_directory, method="ct")
    student = tmp_path / "ct2"
    student.mkdir()
    (student / "config.json").write_text(configs.to_json(config))
    save(student, 1)
    return teacher, student


def save(workdir: Path, step: int) -> None:
    config = tiny_config()
    params = noisy_params(config, make_mesh(config.mesh, jax.devices()), step)
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(step, {"ema": params}, {}, {})


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Methods and steps that were sampled: noise, for nothing is compiled."""
    found: list[tuple[str, int]] = []

    class Noise:
        def __init__(self, config: Any, way: Any, *_: Any) -> None:
            self.shape = (config.data.image_size,) * 2 + (config.data.channels,)
            found.append((way.method, way.num_steps))

        def __call__(
            self, params: Any, labels: np.ndarray, seed: int, report: Any
        ) -> np.ndarray:
            report(len(labels))
            rng = np.random.default_rng(seed)
            return rng.integers(256, size=(len(labels), *self.shape), dtype=np.uint8)

    monkeypatch.setattr(evaluate, "compile_generator", Noise)
    return found


@pytest.fixture
def measure(runs: Runs, sampled: list[tuple[str, int]]) -> Measure:
    """Evaluates both runs."""

    def run(*words: str) -> int:
        sampled.clear()
        both = [f"--workdir={path}" for path in runs]
        return main(["evaluate", *both, f"--num_images={NUM_IMAGES}", *words])

    return run


def results(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return found


def test_one_call_measures_all_and_the_next_nothing(
    runs: Runs,
    measure: Measure,
    sampled: list[tuple[str, int]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher, student = runs
    assert measure("--num_steps=2,4,2") == 0
    assert sampled == [("ddim", 2), ("ddim", 4), ("ddim", 2)]
    said = capsys.readouterr()
    student_only = f"{student} is a student: measured by ddim at its own 2 steps"
    assert student_only in said.out
    assert re.search(
        r"^\| run +\| method .*\n.*\n\| teacher .*\n.*\n\| ct2", said.out, 8
    )
    assert all(f"wrote {path / 'evaluation.json'}" in said.out for path in runs)
    assert "sampling teacher: teacher_ddim 4  72/72  " in said.err
    assert (teacher / "classifier.npz").exists()
    assert not (student / "classifier.npz").exists()
    rows = [*results(teacher)["rows"], *results(student)["rows"]]
    assert [row["method"] for row in rows] == ["teacher_ddim", "teacher_ddim", "ct"]
    for row in rows:
        assert SHA256.fullmatch(row["weights_sha256"])
        assert SHA256.fullmatch(row["classifier_sha256"])
        assert (row["num_images"], row["reference_images"]) == (NUM_IMAGES, 1500)
        assert 0 < row["frechet_distance_std"] < row["frechet_distance"]
        assert 0 < row["pixel_frechet_distance_std"] < row["pixel_frechet_distance"]
        assert (row["seed"], "commit" in row) == (0, True)
    assert [row["train_step"] for row in rows] == [8, 8, 1]
    assert rows[0]["weights_sha256"] == rows[1]["weights_sha256"]
    assert rows[0]["weights_sha256"] != rows[2]["weights_sha256"]
    before = [results(path) for path in runs]
    assert before[0]["floor"] == before[1]["floor"] > 0
    assert before[1]["config"]["method"] == "ct"

    # All is there: no array is read.
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "load_ema", lambda *_: pytest.fail("read"))
        assert measure("--num_steps=2,4") == 0
    assert not sampled
    assert "| ct2 " in capsys.readouterr().out
    assert [results(path) for path in runs] == before
    # Other weights, another way, another seed, or all of it on demand.
    save(student, 3)
    assert measure("--num_steps=2,8") == 0
    assert sampled == [("ddim", 8), ("ddim", 2)]
    assert results(student)["rows"][0]["train_step"] == 3
    assert measure("--num_steps=4", "--seed=1") == 0
    assert sampled == [("ddim", 4), ("ddim", 2)]
    assert measure("--num_steps=4", "--seed=1", "--again") == 0
    assert sampled == [("ddim", 4), ("ddim", 2)]
    assert [row["steps"] for row in results(teacher)["rows"]] == [2, 8, 4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_call_that_was_stopped_goes_on(
    runs: Runs,
    measure: Measure,
    sampled: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    generate = vars(evaluate)["compile_generator"]

    def stopped(config: Any, way: Any, *others: Any) -> Any:
        if way.num_steps == 4:
            signal.raise_signal(number)
        return generate(config, way, *others)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "compile_generator", stopped)
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                measure("--num_steps=2,4")
        else:
            assert measure("--num_steps=2,4") == 143
            said = capsys.readouterr().err.splitlines()[-1]
            assert said == f"multistep-cm evaluate: stopped by SIGTERM: {STOPPED}"
    first = results(runs[0])["rows"]
    assert [row["steps"] for row in first] == [2]
    assert measure("--num_steps=2,4") == 0
    assert sampled == [("ddim", 4), ("ddim", 2)]
    assert results(runs[0])["rows"][0] == first[0]


def test_what_is_refused_for_several(
    runs: Runs,
    measure: Measure,
    sampled: list[tuple[str, int]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher, student = runs
    monkeypatch.setattr(classifier, "train_classifier", lambda *_: pytest.fail("went"))

    def said(*words: str) -> str:
        assert measure(*words) == 2
        assert not sampled
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    assert "expected numbers such as 8" in said("--num_steps=2,0")
    (student / "evaluation.json").write_text("[]")
    assert f'{student / "evaluation.json"} holds no list "rows"' in said()
    (student / "evaluation.json").unlink()
    path = student / "config.json"
    split = '"evaluation_split": "{}"'
    text = path.read_text().replace(split.format("test"), split.format("train"))
    path.write_text(text)
    other = said("--classifier=a.npz")
    assert f"{teacher} and {student} differ in data.*" in other
