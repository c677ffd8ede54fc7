"""Datasets on disk for the tests of the data room."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from multistep_cm.config import default_config
from multistep_cm.data.builders.catalog import open_builder

MakeDataset = Callable[..., Path]


@pytest.fixture(scope="session")
def digits_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TFDS data_dir with the digits prepared."""
    directory = str(tmp_path_factory.mktemp("tfds"))
    open_builder("digits8", directory)
    return directory


@pytest.fixture
def data_config(digits_directory: str) -> ConfigDict:
    """The `data` part of the default config, for the prepared digits."""
    config = default_config().data.copy_and_resolve_references()
    with config.unlocked():
        config.directory = digits_directory
    return config


def png(image: np.ndarray) -> bytes:
    """A PNG file of a uint8 array [H, W] or [H, W, C]."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_dataset(
    directory: Path,
    features: Mapping[str, Any],
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    name: str = "tiny",
) -> Path:
    """Prepare a dataset that TFDS finds by its files alone; returns their folder."""

    def info(self: Any) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(dict(features)),
            disable_shuffling=True,
        )

    def generate(self: Any, split: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        yield from enumerate(splits[split])

    methods = {
        "VERSION": tfds.core.Version("1.0.0"),
        "name": name,
        "_info": info,
        "_generate_examples": generate,
        "_split_generators": lambda self, _: {
            split: self._generate_examples(split) for split in splits
        },
    }
    with tfds.core.registered.skip_registration():
        made = type("Tiny", (tfds.core.GeneratorBasedBuilder,), methods)
    builder = made(data_dir=directory, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_path)


@pytest.fixture
def photos(tmp_path: Path) -> tuple[str, list[np.ndarray]]:
    """A data_dir with the dataset `tiny`: five RGB images of different sizes."""
    rng = np.random.default_rng(0)
    sizes = [(6, 9), (9, 6), (4, 4), (12, 8), (5, 30)]
    images = [rng.integers(256, size=(*s, 3), dtype=np.uint8) for s in sizes]
    features = {
        "photo": tfds.features.Image(shape=(None, None, 3)),
        "kind": tfds.features.ClassLabel(num_classes=5),
        "deep": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16),
        "alpha": tfds.features.Image(shape=(None, None, 4)),
        "array": tfds.features.Tensor(shape=(4, 4, 1), dtype=np.uint8),
        "weight": tfds.features.Scalar(dtype=np.float32),
        "number": tfds.features.Scalar(dtype=np.int64),
    }
    examples = [
        {
            "photo": png(image),
            "kind": index,
            "deep": png(np.zeros((2, 2), np.uint16)),
            "alpha": png(np.zeros((2, 2, 4), np.uint8)),
            "array": np.full((4, 4, 1), index, np.uint8),
            "weight": 0.5,
            "number": index - 1,
        }
        for index, image in enumerate(images)
    ]
    write_dataset(tmp_path, features, {"train": examples})
    return str(tmp_path), images
