"""The digits on disk, and how a builder is found and prepared."""

import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from multistep_cm.data.builders import catalog, digits8
from multistep_cm.errors import UserError


def contents(builder: tfds.core.DatasetBuilder) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of all splits, sorted, by TFDS's own decoder."""
    records = [r for split in ("train", "test") for r in builder.as_data_source(split)]
    images = np.stack([record["image"][..., 0] for record in records])
    labels = np.array([record["label"] for record in records])
    order = np.lexsort((*images.reshape(len(images), -1).T, labels))
    return images[order], labels[order]


def test_the_digits_are_those_of_scikit_learn(digits_directory: str) -> None:
    digits = load_digits()
    images, labels = contents(catalog.open_builder("digits8", digits_directory))
    expected = np.rint(digits.images * 255 / 16).astype(np.uint8)
    order = np.lexsort((*expected.reshape(len(expected), -1).T, digits.target))
    np.testing.assert_array_equal(images, expected[order])
    np.testing.assert_array_equal(labels, digits.target[order])


def test_the_splits_are_stratified_and_disjoint(digits_directory: str) -> None:
    builder = catalog.open_builder("digits8", digits_directory)
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert sizes == {"train": 1500, "test": 297}
    labels = load_digits().target
    indices = digits8.split_indices(labels)
    np.testing.assert_array_equal(
        np.sort(np.concatenate(list(indices.values()))), np.arange(1797)
    )
    share = np.bincount(labels[indices["test"]]) / np.bincount(labels)
    np.testing.assert_allclose(share, 297 / 1797, atol=0.01)


def test_the_metadata(digits_directory: str) -> None:
    info = catalog.open_builder("digits8", digits_directory).info
    assert info.features["image"].shape == (8, 8, 1)
    assert info.features["label"].num_classes == 10
    assert info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    assert "scikit-learn" in info.description
    assert "Kaynak" in info.citation
    assert info.homepage.startswith("https://")


def test_the_second_use_writes_nothing(
    digits_directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(builder: tfds.core.DatasetBuilder) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr(catalog, "generate", generate)
    catalog.open_builder("digits8", digits_directory)


@pytest.mark.parametrize("missing", ["dataset_info.json", "*train*", "*"])
def test_half_a_dataset_is_made_again(
    digits_directory: str, tmp_path: Path, missing: str
) -> None:
    shutil.copytree(Path(digits_directory) / "digits8", tmp_path / "digits8")
    for path in (tmp_path / "digits8" / "1.0.0").glob(missing):
        path.unlink()
    builder = catalog.open_builder("digits8", str(tmp_path))
    assert len(contents(builder)[0]) == 1797


def test_an_interrupted_preparation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(labels: np.ndarray) -> dict[str, np.ndarray]:
        return {"train": np.arange(5), "test": np.array([len(labels)])}

    with monkeypatch.context() as patch:
        patch.setattr(digits8, "split_indices", interrupted)
        with pytest.raises(IndexError):
            catalog.open_builder("digits8", str(tmp_path))
    assert not (tmp_path / "digits8" / "1.0.0").exists()
    assert len(contents(catalog.open_builder("digits8", str(tmp_path)))[0]) == 1797


def test_another_process_may_be_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = digits8.digits_arrays

    def meanwhile() -> tuple[np.ndarray, np.ndarray]:
        monkeypatch.setattr(digits8, "digits_arrays", arrays)
        catalog.open_builder("digits8", str(tmp_path))
        return arrays()

    monkeypatch.setattr(digits8, "digits_arrays", meanwhile)
    builder = catalog.open_builder("digits8", str(tmp_path))
    assert len(contents(builder)[0]) == 1797
    assert [path.name for path in (tmp_path / "digits8").iterdir()] == ["1.0.0"]


@pytest.mark.slow
def test_processes_may_prepare_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        jobs = [("digits8", str(tmp_path))] * 3
        assert pool.starmap(count_training_examples, jobs, chunksize=1) == [1500] * 3


def count_training_examples(name: str, directory: str) -> int:
    return len(catalog.open_builder(name, directory).as_data_source("train"))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"file/tfds.*data.directory"):
        catalog.open_builder("digits8", str(tmp_path / "file" / "tfds"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar11", "cifar10"),
        ("digit8", "digits8"),
        ("imagenet_resized/65x65", "imagenet_resized/64x64"),
        ("cifar10/32x32", "cifar10 alone"),
        ("cifar10:9.9.9", "cifar10 alone"),
        ("no such name", "nearest"),
        ("", "nearest"),
    ],
)
def test_an_unknown_name(name: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected) as raised:
        catalog.open_builder(name, str(tmp_path))
    assert repr(name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_tensorflow_is_not_imported(digits_directory: str) -> None:
    code = f"""
import sys
from multistep_cm.config import default_config
from multistep_cm.data import pipeline, sources
config = default_config()
config.data.directory = {digits_directory!r}
source = sources.open_source(config.data, "train")
next(pipeline.DataIterator(pipeline.Batches(source, 4, 0)))
assert not [m for m in sys.modules if m.partition(".")[0] == "tensorflow"]
print("fine")
"""
    # The iterator is not closed: its threads must not keep the process alive.
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert ran.stdout == "fine\n", ran.stderr
    assert ran.returncode == 0
