"""Records that cannot be decoded: passed over alike by all, up to the limit."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from multistep_cm.config import default_config
from multistep_cm.data import sources
from multistep_cm.data.bad_records import BadRecordError, TolerantSource
from multistep_cm.data.pipeline import Batches, DataIterator
from multistep_cm.errors import UserError
from tests.data.conftest import png, write_dataset

SIZE = 6
NUMBER = 20
BAD = (4, 5, NUMBER - 1)


def pictures() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(256, size=(NUMBER, SIZE, SIZE, 3), dtype=np.uint8)


def data_config(directory: Path, fraction: float, **values: object) -> ConfigDict:
    data = default_config().data
    data.update({"directory": str(directory), "cache": False, "channels": 3})
    data.update({"image_size": SIZE, "num_classes": 2, "evaluation_split": "train"})
    data.update({"bad_record_fraction": fraction, **values})
    return data


def make_folder(directory: Path) -> ConfigDict:
    """Files of which those of `BAD` are cut off."""
    (directory / "train" / "a").mkdir(parents=True)
    (directory / "train" / "b").mkdir()
    for index, picture in enumerate(pictures()):
        path = directory / "train" / "ab"[index >= 10] / f"{index:02}.png"
        Image.fromarray(picture).save(path)
        if index in BAD:
            path.write_bytes(path.read_bytes()[:60])
    return data_config(directory, 0.15, name=sources.FOLDER)


def make_tfds(directory: Path) -> ConfigDict:
    """A dataset of which those of `BAD` hold the bytes of no image."""
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    images = [png(picture) for picture in pictures()]
    examples = [
        {"image": image, "label": index // 10} for index, image in enumerate(images)
    ]
    folder = write_dataset(directory, features, {"train": examples})
    (file,) = folder.glob("*array_record*")
    contents = file.read_bytes()
    for index in BAD:
        # The bytes of one record, of which the file keeps a hash.
        at = contents.index(images[index][60:80])
        contents = contents[:at] + b"\0\0\0\0" + contents[at + 4 :]
    file.write_bytes(contents)
    return data_config(directory, 0.15, name="tiny")


@pytest.fixture(params=[make_folder, make_tfds], ids=["folder", "tfds"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> ConfigDict:
    make: Callable[[Path], ConfigDict] = request.param
    return make(tmp_path)


def test_the_next_good_one_stands_in_its_place(
    config: ConfigDict, capfd: pytest.CaptureFixture[str]
) -> None:
    source = sources.open_source(config, "train")
    for _ in range(2):  # an epoch is no news
        found = source.read(np.arange(NUMBER))
    expected = np.arange(NUMBER)
    expected[[4, 5, NUMBER - 1]] = [6, 6, 0]
    np.testing.assert_array_equal(found["image"], pictures()[expected])
    np.testing.assert_array_equal(found["label"], expected // 10)
    assert source.num_bad == 3
    said = capfd.readouterr().out.splitlines()
    lines = [line for line in said if line.startswith("passed over")]
    assert len(lines) == 3
    for number, (line, index) in enumerate(zip(lines, BAD, strict=True), 1):
        assert f"bad record {number} of this process" in line
        assert f"example {index} of" in line
        file = f"{index:02}.png" if config.name == sources.FOLDER else f"record {index}"
        assert file in line


def test_without_the_key_the_first_one_stops(config: ConfigDict) -> None:
    config.bad_record_fraction = 0.0
    source = sources.open_source(config, "train")
    source.read(np.array([3, 6]))
    with pytest.raises(BadRecordError, match=r"example 5 of .* cannot be read") as e:
        source.read(np.array([3, 5]))
    assert "--config.data.bad_record_fraction=0.01" in str(e.value)
    assert len(str(e.value).splitlines()) == 1


def test_more_than_the_fraction_is_an_error(config: ConfigDict) -> None:
    config.bad_record_fraction = 0.14
    source = sources.open_source(config, "train")
    source.read(np.arange(NUMBER - 1))
    with pytest.raises(UserError, match=f"example {NUMBER - 1} of") as caught:
        source.read(np.array([NUMBER - 1]))
    message = str(caught.value)
    assert "with it 3 of 20 records of split 'train' are bad" in message
    assert "more than data.bad_record_fraction = 0.14 allows" in message
    assert len(message.splitlines()) == 1


def test_a_cache_holds_the_same_and_counts_the_same(config: ConfigDict) -> None:
    uncached = sources.open_source(config, "train")
    expected = uncached.read(np.arange(NUMBER))
    config.cache = True
    cached = sources.open_source(config, "train")
    assert isinstance(cached, sources.ArraySource)
    assert cached.num_bad == 3
    for key, value in cached.read(np.arange(NUMBER)).items():
        np.testing.assert_array_equal(value, expected[key])


def test_batches_do_not_depend_on_processes_or_resuming(config: ConfigDict) -> None:
    """Each process has met other bad records than the rest, and in another order."""

    def batches(shard: int = 0, num_shards: int = 1) -> Batches:
        source = sources.open_source(config, "train")
        return Batches(source, 8, 0, flip=True, shard=shard, num_shards=num_shards)

    iterator = DataIterator(batches(), num_threads=4)
    whole = list(itertools.islice(iterator, 6))
    assert iterator.num_bad == 3
    iterator.close()
    for step in reversed(range(6)):
        halves = [batches(shard, 2).host_batch(step) for shard in range(2)]
        for key, value in whole[step].items():
            pieces = np.concatenate([half[key] for half in halves])
            np.testing.assert_array_equal(pieces, value)


def test_a_bad_first_record_is_no_reason_not_to_begin(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_folder(tmp_path)
    (tmp_path / "train" / "a" / "00.png").write_bytes(b"")
    config.bad_record_fraction = 0.2
    sources.check_data(config)
    assert "passed over" not in capfd.readouterr().out  # it is said when it is read
    config.bad_record_fraction = 0.0
    with pytest.raises(BadRecordError, match=r"00\.png"):
        sources.check_data(config)


def test_a_file_that_is_gone_is_never_passed_over(tmp_path: Path) -> None:
    """It may be back the next time: the batches would be others."""
    source = sources.open_source(make_folder(tmp_path), "train")
    assert isinstance(source, TolerantSource)
    (tmp_path / "train" / "a" / "00.png").unlink()
    with pytest.raises(UserError, match=r"00\.png' cannot be read: .*bring the file"):
        source.read(np.array([0]))
    assert source.num_bad == 0
