"""Captions as arrays, what is cut, and what a dataset must hold."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from multistep_cm.config import default_config
from multistep_cm.data import captions
from multistep_cm.data.pipeline import Batches
from multistep_cm.data.sources import check_data, open_source
from multistep_cm.errors import UserError
from tests.data.conftest import png, write_dataset

TEXTS = ["a two", "drei über vier", "", "a nine above a seven"]
LENGTH, WIDTH = 3, 5


def test_bytes_and_their_mask() -> None:
    arrays, num_cut = captions.encode_bytes(TEXTS, 12)
    assert num_cut == 2
    assert (arrays["text"].dtype, arrays["text_mask"].dtype) == (np.uint8, np.bool_)
    read = [
        bytes(row[mask]).decode()
        for row, mask in zip(arrays["text"], arrays["text_mask"], strict=True)
    ]
    assert read == ["a two", "drei über v", "", "a nine above"]
    assert not arrays["text"][~arrays["text_mask"]].any()


def test_a_letter_is_not_cut_in_two() -> None:
    arrays, _ = captions.encode_bytes(["drei über vier"], 6)
    assert bytes(arrays["text"][0][arrays["text_mask"][0]]) == b"drei "


def test_cut_captions_are_counted_and_said_now_and_then() -> None:
    said: list[str] = []
    counter = captions.CutCounter("here", 8, said.append)
    for number in (0, 1, 0, 3, 5, 1, 200):
        counter.add(number)
    assert counter.number == 210
    assert [line.split()[1] for line in said] == ["1", "10", "210"]
    assert "longer than 8 bytes and cut (here): raise data.text_length" in said[0]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A data_dir with `tiny`: four images with captions and embeddings."""
    folder = tmp_path_factory.mktemp("captions")
    rng = np.random.default_rng(0)
    features = {
        "image": tfds.features.Image(shape=(4, 4, 1)),
        "caption": tfds.features.Text(),
        "embedding": tfds.features.Tensor(shape=(LENGTH, WIDTH), dtype=np.float32),
        "there": tfds.features.Tensor(shape=(LENGTH,), dtype=np.bool_),
        "wrong": tfds.features.Tensor(shape=(LENGTH + 1,), dtype=np.bool_),
    }
    examples = [
        {
            "image": png(np.full((4, 4), index, np.uint8)),
            "caption": text,
            "embedding": rng.normal(size=(LENGTH, WIDTH)).astype(np.float32),
            "there": np.arange(LENGTH) < index,
            "wrong": np.zeros(LENGTH + 1, np.bool_),
        }
        for index, text in enumerate(TEXTS)
    ]
    examples[3]["embedding"] = np.full((LENGTH, WIDTH), 1e6, np.float32)
    write_dataset(folder, features, {"train": examples[:3], "test": examples[3:]})
    yield str(folder)


def config(directory: str, **changes: Any) -> ConfigDict:
    data = default_config().data
    values = {
        "name": "tiny",
        "directory": directory,
        "image_size": 4,
        "label_key": "",
        "num_classes": 0,
        "text": "bytes",
        "text_length": 8,
        "evaluation_split": "train",
    }
    data.update({**values, **changes})
    return data


EMBEDDED = {
    "text": "precomputed",
    "text_key": "embedding",
    "text_mask_key": "there",
    "text_length": LENGTH,
    "text_width": WIDTH,
}


@pytest.mark.parametrize("cache", [True, False])
def test_captions_come_with_their_images(
    directory: str, cache: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source(config(directory, cache=cache), "train")
    batch = source.read(np.array([1, 0, 2]))
    np.testing.assert_array_equal(batch["image"].max((1, 2, 3)), [1, 0, 2])
    want, _ = captions.encode_bytes([TEXTS[i] for i in (1, 0, 2)], 8)
    for key, value in want.items():
        np.testing.assert_array_equal(batch[key], value)
        assert batch[key].dtype == value.dtype
    assert source[0]["text"].shape == (8,)
    assert "1 caption was longer than 8 bytes" in capsys.readouterr().out


def test_embeddings_come_in_float16(directory: str) -> None:
    source = open_source(config(directory, **EMBEDDED), "train")
    batch = source.read(np.array([2, 0]))
    assert batch["text"].shape == (2, LENGTH, WIDTH)
    assert batch["text"].dtype == np.float16
    np.testing.assert_array_equal(batch["text_mask"].sum(1), [2, 0])


def test_batches_of_several_steps_hold_captions(directory: str) -> None:
    source = open_source(config(directory), "train")
    batch = Batches(source, 2, seed=0, steps_per_call=3).host_batch(0)
    assert batch["text"].shape == (3, 2, 8)
    assert batch["text_mask"].shape == (3, 2, 8)
    # Bytes and image stay together.
    first = {0: ord("a"), 1: ord("d"), 2: 0}
    numbers = batch["image"].max((2, 3, 4))
    want = np.vectorize(first.get)(numbers)
    np.testing.assert_array_equal(batch["text"][..., 0], want)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_key": "captions"}, "does not have .did you mean 'caption'"),
        ({"text_key": "image"}, "is no text"),
        ({**EMBEDDED, "text_width": 7}, r"floats of shape \(3, 7\): set data.text_"),
        ({**EMBEDDED, "text_key": "there"}, "expected embeddings as floats"),
        ({**EMBEDDED, "text_mask_key": "mask"}, "embeddings need a mask"),
        ({**EMBEDDED, "text_mask_key": "wrong"}, r"a mask of bool in shape \(3,\)"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(
    directory: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_data(config(directory, **changes))
    assert len(str(caught.value).splitlines()) == 1


def test_embeddings_too_large_for_float16(directory: str) -> None:
    source = open_source(config(directory, **EMBEDDED, cache=False), "test")
    with pytest.raises(UserError, match="not finite, or too large for float16"):
        source.read(np.array([0]))


def test_a_cache_counts_embeddings(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multistep_cm.data.sources.MAX_CACHE_BYTES", 100)
    open_source(config(directory), "train")
    with pytest.raises(UserError, match="3 examples of split 'train' need"):
        open_source(config(directory, **EMBEDDED), "train")


def test_the_dataset_is_where_it_was_written(directory: str) -> None:
    assert (Path(directory) / "tiny" / "1.0.0").is_dir()
