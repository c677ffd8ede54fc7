"""Files of numbers that a report and an evaluation read: damaged, or from elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistep_cm import config as configs
from multistep_cm.evaluation.results import find_done, read_results
from multistep_cm.reporting.tables import format_rows
from tests.fuzz.invariant import fewer, hypothesis_settings, refusal, run
from tests.fuzz.mutations import JSON, changed, mutated
from tests.training.tiny import tiny_config

ROW = {
    "method": "cd",
    "steps": 2,
    "network_calls": 2,
    "guidance_scale": 0.5,
    "guidance_interval": [0.2, 0.8],
    "x_variance": "analytic",
    "ema_decay": 0.999,
    "frechet_distance": 0.03,
    "frechet_distance_spread": [0.02, 0.04],
    "class_accuracy": 0.9,
    "variance_ratio": 0.99,
    "images_per_second": 100.0,
    "fid": 3.0,
    "num_images": 64,
    "seed": 0,
    "train_step": 8,
    "weights_sha256": "0" * 64,
    "commit": "1" * 40,
    "seconds": 1.0,
}
RESULTS = {
    "floor": 0.01,
    "classifier_accuracy": 0.99,
    "jax": "0.10.2",
    "config": {"training": {"ema_decay": 0.999}},
    "rows": [ROW, {**ROW, "method": "teacher_ddim", "steps": 8}],
}
METRICS = [
    {"step": 2, "loss": 1.5, "images_per_second": 100.0, "mfu": 0.3, "loss_t0": 1.0},
    {"step": 4, "loss": "nan", "learning_rate": 1e-3, "grad_norm": 2.0},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder without checkpoint, and its teacher's beside it."""
    path = tmp_path_factory.mktemp("results") / "run"
    path.mkdir()
    config = tiny_config(method="ct", training__more_ema_decays=(0.9,))
    (path / "config.json").write_text(configs.to_json(config))
    return path


def fill(folder: Path, results: Any, metrics: Any, overview: bytes = b"") -> None:
    def to_bytes(values: Any) -> bytes:
        return values if isinstance(values, bytes) else json.dumps(values).encode()

    (folder / "evaluation.json").write_bytes(to_bytes(results))
    lines = [*map(to_bytes, metrics)] if isinstance(metrics, list) else [metrics]
    (folder / "metrics.jsonl").write_bytes(b"\n".join(lines))
    (folder / "parameters.txt").write_bytes(overview)


def report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It refuses and leaves the old page, or writes a whole new one."""
    page = folder / "report.html"
    page.write_text("the old one")
    if run(capsys, "report", f"--workdir={folder}", "--num_images=0"):
        assert page.read_text() == "the old one"
    else:
        assert page.read_text().rstrip().endswith("</html>")
    assert not [*folder.glob(".*.tmp")]


@given(results=changed(RESULTS))
@fewer(1)
def test_other_results(
    results: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(folder, results, METRICS)
    report(folder, capsys)


@given(metrics=changed(METRICS) | st.lists(JSON, max_size=3))
@fewer(1)
def test_other_metrics(
    metrics: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(folder, RESULTS, metrics)
    report(folder, capsys)


@given(
    results=mutated(json.dumps(RESULTS).encode()),
    metrics=mutated(b"\n".join(json.dumps(row).encode() for row in METRICS)),
    overview=mutated(b"Total: 1,234\n"),
)
@fewer(1)
def test_damaged_files(
    results: bytes,
    metrics: bytes,
    overview: bytes,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(folder, results, metrics, overview)
    report(folder, capsys)


@given(changed(RESULTS))
@hypothesis_settings
def test_rows_that_an_evaluation_finds(folder: Path, results: Any) -> None:
    fill(folder, results, METRICS)
    found: list[Any] = []
    said = refusal(lambda: found.append(read_results(folder)))
    assert found or str(folder / "evaluation.json") in said
    for values in found:
        find_done(values["rows"], ROW)
        format_rows(values["rows"], values.get("floor"), with_decay=True)


@pytest.mark.parametrize("name", ["evaluation.json", "metrics.jsonl", "parameters.txt"])
def test_a_folder_in_the_place_of_a_file(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / name).mkdir()
    report(tmp_path, capsys)
