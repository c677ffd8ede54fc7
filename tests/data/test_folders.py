"""What a folder of images is taken for, from names alone."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from multistep_cm.config import default_config
from multistep_cm.data import folders
from multistep_cm.data.folders import count_classes, find_images
from multistep_cm.errors import UserError


def touch(root: Path, paths: Iterable[str]) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def config_of(folder: Path, **values: Any) -> ConfigDict:
    data = default_config().data
    data.update({"name": "folder", "directory": str(folder), "num_classes": 0})
    data.update(values)
    return data


def paths_of(config: ConfigDict, split: str = "train") -> list[str]:
    return list(find_images(config).splits[split].paths)


def everything(config: ConfigDict) -> ConfigDict:
    """The same with nothing held out."""
    config.evaluation_split = config.train_split
    return config


def test_flat_and_nested_images_are_sorted_by_path(tmp_path: Path) -> None:
    paths = ["b.png", "a/z.JPG", "a b.webp", "a/deep/er/x.jpeg", "B.bmp", "é.tif"]
    touch(tmp_path, paths)
    assert paths_of(everything(config_of(tmp_path))) == sorted(paths)


def test_the_order_is_not_the_file_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, [f"{label}/{i}.png" for label in "cab" for i in range(12)])
    config = config_of(tmp_path, num_classes=3)
    before = find_images(config)

    def backwards(path: Path) -> Any:
        return reversed(list(entries(path)))

    entries = folders._entries
    monkeypatch.setattr(folders, "_entries", backwards)
    after = find_images(config)
    for split in ("train", "test"):
        assert after.splits[split].paths == before.splits[split].paths
        np.testing.assert_array_equal(
            after.splits[split].labels, before.splits[split].labels
        )


def test_classes_are_numbered_in_the_order_of_their_names(tmp_path: Path) -> None:
    # As text, in which "10" comes before "9" and "a b" lies between "a" and "a/x".
    touch(tmp_path, ["a/1.png", "a b/1.png", "9/1.png", "10/1.png", "10/sub/2.png"])
    found = find_images(everything(config_of(tmp_path, num_classes=4)))
    assert found.classes == ["10", "9", "a", "a b"]
    images = found.splits["train"]
    expected = {"10": 0, "9": 1, "a": 2, "a b": 3}
    for path, label in zip(images.paths, images.labels.tolist(), strict=True):
        assert label == expected[path.partition("/")[0]]
    assert count_classes(str(tmp_path)) == 4


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("test", "test"),
        ("validation", "test"),
        ("val", "test"),
        ("val", "validation"),
        ("held", "held"),
    ],
)
def test_sub_folders_are_splits(tmp_path: Path, name: str, split: str) -> None:
    touch(tmp_path, ["train/a/1.png", "train/b/2.png", "train/b/3.png"])
    touch(tmp_path, [f"{name}/b/4.png", "README.txt"])
    found = find_images(config_of(tmp_path, num_classes=2, evaluation_split=split))
    assert found.splits["train"].paths == ["a/1.png", "b/2.png", "b/3.png"]
    assert found.splits[split].paths == ["b/4.png"]
    assert found.splits[split].root == tmp_path / name
    # The number of a class is that of the training images.
    assert found.splits[split].labels.tolist() == [1]
    assert found.ignored == ["README.txt"]
    assert count_classes(str(tmp_path)) == 2


def test_a_tenth_of_each_class_is_held_out(tmp_path: Path) -> None:
    sizes = {"large": 200, "one": 1, "small": 3, "two": 2}
    touch(tmp_path, [f"{k}/{i}.png" for k, size in sizes.items() for i in range(size)])
    found = find_images(config_of(tmp_path, num_classes=4))
    train, test = found.splits["train"], found.splits["test"]
    assert not set(train.paths) & set(test.paths)
    assert len(train.paths) + len(test.paths) == 206
    assert train.paths == sorted(train.paths)
    assert np.bincount(test.labels).tolist() == [20, 0, 1, 1]
    assert np.bincount(train.labels).tolist() == [180, 1, 2, 1]


def test_what_is_held_out_hardly_depends_on_other_files(tmp_path: Path) -> None:
    touch(tmp_path, [f"{i}.png" for i in range(300)])
    before = set(paths_of(config_of(tmp_path), "test"))
    (tmp_path / "7.png").unlink()
    touch(tmp_path, [f"{i}.png" for i in range(300, 310)])
    after = set(paths_of(config_of(tmp_path), "test"))
    assert len(before - after) <= 1 + ("7.png" in before)
    # No run of neighbours: the gaps of a random tenth vary.
    numbers = sorted(int(path.partition(".")[0]) for path in after)
    assert len(np.unique(np.diff(numbers))) > 5


def test_all_images_train_when_nothing_is_held_out(tmp_path: Path) -> None:
    touch(tmp_path, ["a.png", "b.png"])
    found = find_images(everything(config_of(tmp_path)))
    assert list(found.splits) == ["train"]
    assert len(found.splits["train"].paths) == 2


def test_the_fingerprint_is_of_the_names(tmp_path: Path) -> None:
    def fingerprint() -> str:
        found = find_images(everything(config_of(tmp_path)))
        return found.splits["train"].fingerprint()

    touch(tmp_path, ["a.png", "b.png"])
    first = fingerprint()
    (tmp_path / "a.png").write_text("other contents")
    assert fingerprint() == first
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert fingerprint() != first


def test_a_line_says_what_was_found(tmp_path: Path) -> None:
    touch(tmp_path, [f"{label}/{i}.png" for label in "xyz" for i in range(20)])
    touch(tmp_path, [".DS_Store", "x/Thumbs.db", ".git/a.png", "x/._1.png"])
    config = config_of(tmp_path, num_classes=3)
    assert find_images(config).describe() == (
        f"folder {tmp_path}: 54 train and 6 test images, 3 classes ('x' .. 'z'); "
        "ignored what is no image: '.DS_Store' (4 in all)"
    )
    config.num_classes = 0
    assert "6 test images, no classes;" in find_images(config).describe()


def test_links_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, ["data/one/1.png", "far/2.png"])
    (tmp_path / "data" / "two").symlink_to(tmp_path / "far")
    config = everything(config_of(tmp_path / "data", num_classes=2))
    assert paths_of(config) == ["one/1.png", "two/2.png"]
    up, across = tmp_path / "data" / "one" / "up", tmp_path / "far" / "across"
    up.symlink_to(tmp_path / "data")
    with pytest.raises(UserError, match="up' leads to a folder above it"):
        find_images(config)
    up.unlink()
    across.symlink_to(tmp_path / "data")
    with pytest.raises(UserError, match="Too many levels of symbolic links"):
        find_images(config)


def test_names_in_any_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    try:
        touch(tmp_path, [name, "a.png"])
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    found = find_images(everything(config_of(tmp_path))).splits["train"]
    assert name in found.paths
    assert len(found.fingerprint()) == 16


@pytest.mark.parametrize(
    ("paths", "values", "expected"),
    [
        ([], {}, r"holds no images: expected files named \*\.bmp, .*\*\.webp"),
        (["a.txt", "b.heic"], {}, r"holds no images \(2 other files, such as 'a.txt'"),
        (["a/1.png", "b/1.png"], {"num_classes": 3}, r"num_classes is 3, but .* 2 cl"),
        (["1.png"], {"num_classes": 10}, r"is 10, but .* 0 class folders: .* = 0$"),
        (
            ["a/1.png", "b/1.txt"],
            {"num_classes": 2},
            r"class folder .*b holds no images",
        ),
        (
            ["a/1.png", "b/1.png", "2.png"],
            {"num_classes": 2},
            r"image '2.png' .* none of the 2 class folders \('a' \.\. 'b'\)",
        ),
        (["1.png"], {}, r"split 'test' of folder .* none of its 1 images.*=train"),
        (["train/1.png"], {}, r"'train' but none 'test': .*directory=.*train"),
        (["test/1.png", "2.png"], {}, "'test' but none 'train': move .*or rename"),
        (["train/1.png", "test/1.txt"], {}, r"folder .*test holds no images"),
        (
            ["train/a/1.png", "test/b/1.png"],
            {"num_classes": 1},
            r"image 'b/1.png' of folder .*test is in none of the 1 class folders",
        ),
        (["1.png"], {"train_split": "train[:90%]"}, r"train_split is 'train\[:90%\]'"),
        (["1.png"], {"evaluation_split": "../x"}, r"evaluation_split is '\.\./x'"),
        (["1.png"], {"evaluation_split": ""}, r"evaluation_split is ''"),
    ],
)
def test_folders_that_cannot_be_meant(
    tmp_path: Path, paths: list[str], values: dict[str, Any], expected: str
) -> None:
    touch(tmp_path, paths)
    with pytest.raises(UserError, match=expected) as raised:
        find_images(config_of(tmp_path, **values))
    assert "\n" not in str(raised.value)


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory, expected in (
        (str(tmp_path / "none"), "does not exist"),
        (str(tmp_path / "file"), "is no folder"),
        ("", "does not exist"),
    ):
        for check in (
            lambda directory=directory: count_classes(directory),
            lambda directory=directory: find_images(
                config_of(tmp_path, directory=directory)
            ),
        ):
            with pytest.raises(UserError, match=f"{directory}', which {expected}"):
                check()


def test_a_folder_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, ["a/1.png"])

    def scandir(path: Path) -> Any:
        if path.name == "a":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    listed = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="a cannot be read: Permission denied"):
        find_images(config_of(tmp_path))
