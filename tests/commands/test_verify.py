"""`multistep-cm verify` on checkpoints that are damaged in every way."""

from collections.abc import Callable
from pathlib import Path

import pytest

from multistep_cm.commands.main import main
from tests.test_checkpoints import (
    change_position,
    data_file,
    flip_bit,
    save,
    snapshot,
    truncate,
)

# TensorStore leaves a coroutine behind when it meets damage.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collected"),
]


def lose_all(path: Path) -> None:
    path.write_text("{}")


def rename_a_tree(path: Path) -> None:
    path.write_text(path.read_text().replace('"params"', '"qarams"'))


def test_good_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 2, 4)
    before = snapshot(tmp_path)
    assert main(["verify", f"--workdir={tmp_path}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["step 4: good", "step 2: good", "2 of 2 checkpoints are good"]
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("item", "damage", "reason"),
    [
        ("optimizer", flip_bit, "has another sha256 than when it was saved"),
        ("ema", truncate, ""),
        ("params", Path.unlink, ""),
        ("digests", truncate, ""),
        ("digests", lose_all, "has another sha256"),
        ("digests", rename_a_tree, "params/layer/"),
        ("data", change_position, "data has another sha256"),
    ],
)
def test_a_damaged_step_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    item: str,
    damage: Callable[[Path], object],
    reason: str,
) -> None:
    save(tmp_path, 2, 4)
    damage(data_file(tmp_path, 4, item))
    before = snapshot(tmp_path)
    assert main(["verify", f"--workdir={tmp_path}"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("step 4: ")
    assert reason in said[0]
    assert "good" not in said[0]
    assert said[1:] == ["step 2: good", "1 of 2 checkpoints are good"]
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "holds no checkpoint: train it first"),
        (["--config.seed=1"], "--config.seed: verify reads no config"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    assert main(["verify", f"--workdir={tmp_path}", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1
