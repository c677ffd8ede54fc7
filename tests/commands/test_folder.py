"""A folder of images by the command line: trained, stopped and resumed, refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multistep_cm.checkpoints import Checkpoints
from multistep_cm.commands.main import main
from multistep_cm.config import load_config
from multistep_cm.errors import UserError
from multistep_cm.reporting.metrics import read_jsonl
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from multistep_cm.workdir import read_config
from tests.training.tiny import TINY, assert_trees_equal, one_device

FILE = Path(__file__).parents[2] / "configs" / "images.py"
SMALL = [
    *(f"--config.{key}={value}" for key, value in TINY.items()),
    "--config.model.dtype=float32",
    "--config.model.dropout=0.0",
    "--config.training.num_steps=4",
    "--config.training.ema_decay=0.9",
    "--config.sampling.every_steps=0",
]


@pytest.fixture(autouse=True, scope="module")
def single() -> Iterator[None]:
    with one_device():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of twelve pictures, none of them square, and a file beside them."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(12):
            image = rng.integers(256, size=(10, 16, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "pictures" / name / f"{index}.png")
    (tmp_path / "pictures" / "README.txt").touch()
    return tmp_path / "pictures"


def train(folder: Path, workdir: Path, *words: str, arguments: str = "") -> int:
    config = f"--config={FILE}:folder={folder},size=8{arguments}"
    return main(["train", config, f"--workdir={workdir}", *SMALL, *words])


def final(workdir: Path) -> tuple[Any, Any]:
    config = read_config(workdir)
    with Checkpoints(workdir) as checkpoints:
        found = setup.restore_state(checkpoints, config, make_mesh(config.mesh))
    assert found is not None
    return setup.split_state(found[0]), found[1]


def test_stopped_and_resumed_is_the_whole_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert train(folder, whole) == 0
    said = capsys.readouterr().out
    assert (
        f"folder {folder}: 22 train and 2 test images, 2 classes ('cat' .. 'dog'); "
        "ignored what is no image: 'README.txt' (1 in all)"
    ) in said
    # A finished run of two steps, whose length alone is then changed.
    assert train(folder, pieces, "--config.training.num_steps=2") == 0
    path = pieces / "config.json"
    path.write_text(path.read_text().replace('"num_steps": 2,\n', '"num_steps": 4,\n'))
    moved = folder.rename(tmp_path / "moved")
    assert train(moved, pieces) == 0
    (trees, position), (trees_whole, position_whole) = final(pieces), final(whole)
    assert position == position_whole
    assert position["position"] == 4
    assert_trees_equal(trees, trees_whole)
    losses = [
        [row["loss"] for row in read_jsonl(workdir / "metrics.jsonl")]
        for workdir in (pieces, whole)
    ]
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]


def test_a_run_refuses_a_changed_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    assert train(folder, workdir, "--config.training.num_steps=2") == 0
    (folder / "cat" / "3.png").rename(folder / "cat" / "other.png")
    capsys.readouterr()
    assert train(folder, workdir, "--config.training.num_steps=2") == 2
    error = capsys.readouterr().err
    assert "the saved position in the data is of another run: file_names was" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "name", "expected"),
    [
        ("", "none", "none', which does not exist"),
        (",classes=3", "", "data.num_classes is 3, but"),
        (",name=mnist", "", "arguments folder and name are given, expected one"),
        ("", "cat/3.png", "3.png', which is no folder"),
    ],
)
def test_what_no_folder_can_be(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    name: str,
    expected: str,
) -> None:
    monkeypatch.setattr(setup, "build_step", lambda *_: pytest.fail("compiled"))
    assert train(folder / name, tmp_path / "run", arguments=arguments) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_config_counts_the_classes(folder: Path) -> None:
    config = load_config(f"{FILE}:folder={folder}", {})
    assert (config.data.name, config.data.directory) == ("folder", str(folder))
    assert (config.data.num_classes, config.data.label_key) == (2, "label")
    flat = load_config(f"{FILE}:folder={folder / 'cat'}", {}).data
    assert (flat.num_classes, flat.label_key) == (0, "")
    assert load_config(f"{FILE}:folder=elsewhere,classes=7", {}).data.num_classes == 7
    assert load_config(str(FILE), {}).data.num_classes == 10
    with pytest.raises(UserError, match="does not exist"):
        load_config(f"{FILE}:folder=elsewhere", {})
