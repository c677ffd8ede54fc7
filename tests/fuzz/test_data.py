"""Folders of images and prepared datasets, as a disk or somebody may leave them."""

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from multistep_cm.config import default_config
from multistep_cm.data.sources import check_data, open_source
from tests.data.conftest import write_dataset
from tests.fuzz.invariant import fewer, hypothesis_settings, refusal
from tests.fuzz.mutations import changed, mutated

# Pillow warns of what it then refuses, or reads.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


def picture(format: str = "PNG", mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (5, 4), 77).save(file, format)
    return file.getvalue()


FORMATS = [
    *(picture("PNG"), picture("PNG", "RGBA"), picture("PNG", "I;16"), picture("JPEG")),
    *(
        picture("GIF"),
        picture("BMP", "RGB"),
        picture("TIFF", "F"),
        picture("WEBP", "RGB"),
    ),
]
NAMES = st.one_of(
    st.sampled_from(["a.png", "b.JPG", "c.jpeg", "d.gif", "e.txt", ".f.png", "g"]),
    st.sampled_from(["train", "test", "0", "1", "\udc80.png", "a b$(x).png", "é.bmp"]),
    st.text(st.characters(exclude_characters="/\0", codec="utf-8"), max_size=8),
).filter(lambda name: name not in ("", ".", ".."))
CONTENTS = st.one_of(
    st.sampled_from(FORMATS),
    st.sampled_from(FORMATS).flatmap(mutated),
    st.binary(max_size=20),
    st.just(b""),
)
TREES = st.dictionaries(
    NAMES,
    CONTENTS
    | st.dictionaries(NAMES, CONTENTS, max_size=3)
    | st.sampled_from(["link:.", "link:..", "link:nowhere", "link:/dev/zero", "pipe"]),
    max_size=5,
)


def build(folder: Path, tree: Any) -> None:
    """Files, folders, links and pipes; at last so many good images that it can open."""
    for name, value in tree.items():
        path = folder / name
        if len(os.fsencode(name)) > 255 or path.exists() or path.is_symlink():
            continue
        if isinstance(value, dict):
            path.mkdir()
            build(path, value)
        elif isinstance(value, bytes):
            path.write_bytes(value)
        elif value == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(value.removeprefix("link:"))


def folder_config(directory: Path, **values: Any) -> ConfigDict:
    data = default_config().data.copy_and_resolve_references()
    with data.unlocked():
        data.name, data.directory, data.label_key = "folder", str(directory), ""
        for key, value in values.items():
            data[key] = value
    return data


@given(
    tree=TREES,
    classes=st.sampled_from([0, 0, 1, 2]),
    fraction=st.sampled_from([0.0, 0.5]),
    cache=st.booleans(),
)
@hypothesis_settings
def test_a_folder(
    tree: Any, classes: int, fraction: float, cache: bool, tmp_path: Path
) -> None:
    directory = tmp_path / "images"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    build(directory, tree)
    config = folder_config(
        directory, num_classes=classes, bad_record_fraction=fraction, cache=cache
    )
    if refusal(lambda: check_data(config)):
        return
    for split in ("train", "test"):

        def read(split: str = split) -> None:
            source = open_source(config, split)
            batch = source.read(np.arange(len(source)))
            assert batch["image"].shape == (len(source), 8, 8, 1)
            assert batch["image"].dtype == np.uint8

        refusal(read)


@given(data=st.data())
@hypothesis_settings
def test_an_image_that_is_damaged(tmp_path: Path, data: st.DataObject) -> None:
    """Every other reads as before, and the damaged one gives pixels or its name."""
    directory = tmp_path / "images"
    directory.mkdir(exist_ok=True)
    for number in range(11):
        (directory / f"{number:02}.png").write_bytes(FORMATS[0])
    (directory / "05.png").write_bytes(
        data.draw(st.sampled_from(FORMATS).flatmap(mutated))
    )
    config = folder_config(directory, num_classes=0, cache=False)
    said = refusal(lambda: open_source(config, "train").read(np.arange(10)))
    assert not said or "05.png" in said


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with a prepared dataset `tiny` of eleven images."""
    import tensorflow_datasets as tfds

    directory = tmp_path_factory.mktemp("prepared")
    features = {
        "image": tfds.features.Image(shape=(None, None, 1)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    examples = [{"image": FORMATS[0], "label": number % 2} for number in range(11)]
    splits = {"train": examples, "test": examples[:3]}
    write_dataset(directory, features, splits)
    return directory


@given(data=st.data())
@fewer(1)
def test_a_prepared_dataset(
    data: st.DataObject, prepared: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "data"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(prepared, directory)
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    kind = data.draw(st.sampled_from(["bytes", "json", "gone", "folder", "empty"]))
    if kind == "json" and path.suffix == ".json":
        path.write_text(json.dumps(data.draw(changed(json.loads(whole)))))
    elif kind in ("bytes", "json"):
        path.write_bytes(data.draw(mutated(whole)))
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "empty":
            path.touch()
    config = default_config().data.copy_and_resolve_references()
    with config.unlocked():
        config.name, config.directory, config.num_classes = "tiny", str(directory), 2
        config.bad_record_fraction = data.draw(st.sampled_from([0.0, 0.9]))
    if not refusal(lambda: check_data(config)):
        refusal(lambda: open_source(config, "train").read(np.arange(11)))
