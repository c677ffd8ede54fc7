"""Any TFDS dataset by name, and every way in which a config cannot fit it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from multistep_cm.data import sources
from multistep_cm.data.tfds_source import TfdsSource
from multistep_cm.errors import UserError

Photos = tuple[str, list[np.ndarray]]


def changed(config: ConfigDict, **values: Any) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.update(values)
    return config


@pytest.fixture
def photo_config(data_config: ConfigDict, photos: Photos) -> ConfigDict:
    return changed(
        data_config,
        name="tiny",
        directory=photos[0],
        evaluation_split="train",
        image_key="photo",
        label_key="kind",
        image_size=4,
        channels=3,
    )


def test_cached_and_uncached_digits_are_equal(data_config: ConfigDict) -> None:
    cached = sources.open_source(data_config, "train")
    uncached = sources.open_source(changed(data_config, cache=False), "train")
    assert isinstance(cached, sources.ArraySource)
    assert isinstance(uncached, TfdsSource)
    assert len(cached) == len(uncached) == 1500
    indices = np.array([7, 0, 1499, 7])
    for key, dtype in (("image", np.uint8), ("label", np.int32)):
        found = cached.read(indices)[key]
        assert found.dtype == uncached.read(indices)[key].dtype == dtype
        np.testing.assert_array_equal(found, uncached.read(indices)[key])
        np.testing.assert_array_equal(found[2], uncached[1499][key])
        np.testing.assert_array_equal(found[2], cached[1499][key])
    assert cached[0]["image"].shape == (8, 8, 1)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_all_examples_are_in_order(
    data_config: ConfigDict, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "CACHE_CHUNK", 100)
    source = sources.open_source(changed(data_config, cache=False), "test")
    images, labels = sources.all_examples(source, num_threads)
    expected = source.read(np.arange(len(source)))
    np.testing.assert_array_equal(images, expected["image"])
    np.testing.assert_array_equal(labels, expected["label"])
    cached = sources.open_source(data_config, "test")
    np.testing.assert_array_equal(sources.all_examples(cached)[0], images)


@pytest.mark.parametrize("cache", [True, False])
def test_an_index_out_of_range(data_config: ConfigDict, cache: bool) -> None:
    source = sources.open_source(changed(data_config, cache=cache), "test[:3]")
    assert len(source) == 3
    assert len(list(source)) == 3  # type: ignore[call-overload]
    with pytest.raises(IndexError, match="3 of 3"):
        source[3]


@pytest.mark.parametrize("cache", [True, False])
def test_images_of_any_size_are_resized_and_cropped(
    photo_config: ConfigDict, photos: Photos, cache: bool
) -> None:
    config = changed(photo_config, cache=cache)
    sources.check_data(config)
    images, labels = sources.all_examples(sources.open_source(config, "train"))
    np.testing.assert_array_equal(labels, np.arange(5))
    np.testing.assert_array_equal(images[2], photos[1][2])  # it is 4x4
    wide = Image.fromarray(photos[1][4]).resize((24, 4), Image.Resampling.BOX)
    np.testing.assert_array_equal(images[4], np.asarray(wide)[:, 10:14])


def test_features_that_are_no_image_files(photo_config: ConfigDict) -> None:
    config = changed(photo_config, image_key="array", channels=1)
    images, _ = sources.all_examples(sources.open_source(config, "train"))
    expected = np.broadcast_to(np.arange(5)[:, None, None, None], (5, 4, 4, 1))
    np.testing.assert_array_equal(images, expected)


def test_an_unlabelled_dataset_has_label_zero(photo_config: ConfigDict) -> None:
    config = changed(photo_config, label_key="", num_classes=0)
    _, labels = sources.all_examples(sources.open_source(config, "train"))
    np.testing.assert_array_equal(labels, np.zeros(5))
    assert labels.dtype == np.int32


def test_labels_may_be_any_integers_without_classes(photo_config: ConfigDict) -> None:
    config = changed(photo_config, label_key="number", num_classes=0)
    _, labels = sources.all_examples(sources.open_source(config, "train"))
    np.testing.assert_array_equal(labels, np.arange(5) - 1)


@pytest.mark.parametrize("name", ["cifar10", "imagenet_resized/64x64"])
def test_mocked_datasets_by_name_alone(
    data_config: ConfigDict, name: str, tmp_path: Path
) -> None:
    config = changed(data_config, name=name, directory=str(tmp_path), channels=3)
    config = changed(config, num_classes=1000, image_size=16)
    with tfds.testing.mock_data(num_examples=6):
        sources.check_data(config)
        source = sources.open_source(config, "train")
    assert len(source) == 6
    assert source.read(np.arange(6))["image"].shape == (6, 16, 16, 3)


Change = dict[str, Any]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "digits9"}, r"data\.name is 'digits9'.*digits8"),
        ({"train_split": "trian"}, r"'trian'.*'train', 'test'"),
        ({"evaluation_split": "test[:5"}, r"'test\[:5'.*'train', 'test'"),
        ({"train_split": "train[:0]"}, r"'train\[:0\]'.*is empty"),
        ({"image_key": "imgae"}, r"'imgae'.*mean 'image'.*'image', 'label'"),
        ({"label_key": "target"}, r"'target'.*'image', 'label'"),
        ({"label_key": ""}, r"data\.label_key is empty.*10"),
        ({"image_key": "label"}, "no image: ClassLabel"),
        ({"label_key": "image"}, "no integer label: Image"),
        ({"num_classes": 9}, r"num_classes is 9.*10 classes"),
        ({"channels": 2}, r"data\.channels is 2.*1 .*3"),
        ({"resize": "lanczos"}, "'lanczos'.*area, bilinear, bicubic"),
    ],
)
def test_what_does_not_fit_the_digits(
    data_config: ConfigDict, values: Change, expected: str
) -> None:
    with pytest.raises(UserError, match=expected) as raised:
        sources.check_data(changed(data_config, **values))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"image_key": "deep"}, "'deep'.*uint16.*uint8"),
        ({"image_key": "alpha"}, "'alpha'.*4 channels.*1 .*3 "),
        ({"label_key": "weight"}, "'weight'.*no integer"),
        ({"label_key": "number"}, "example 0 .*label -1, expected 0 to 9"),
    ],
)
def test_what_does_not_fit_the_photos(
    photo_config: ConfigDict, values: Change, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        sources.check_data(changed(photo_config, **values))


def test_what_fits_passes_the_check(data_config: ConfigDict) -> None:
    sources.check_data(data_config)
    sources.check_data(changed(data_config, image_size=32, channels=3, num_classes=12))


def test_a_dataset_that_is_not_prepared(
    data_config: ConfigDict, tmp_path: Path
) -> None:
    config = changed(data_config, name="cifar10", channels=3, directory=str(tmp_path))
    with pytest.raises(UserError, match="not prepared") as raised:
        sources.check_data(config)
    command = str(raised.value).split("`")[1]
    assert command == (
        "import tensorflow_datasets as tfds; "
        f"tfds.builder('cifar10', data_dir={str(tmp_path)!r}, "
        'file_format="array_record").download_and_prepare()'
    )
    compile(command, "command", "exec")


def test_a_dataset_in_a_format_without_random_access(photo_config: ConfigDict) -> None:
    folder = Path(photo_config.directory) / "tiny" / "1.0.0"
    info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
    info["fileFormat"] = "tfrecord"
    (folder / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    for path in folder.glob("*.array_record*"):
        path.rename(str(path).replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"as tfrecord.*file_format=\"array_record\""):
        sources.check_data(photo_config)


def test_a_file_that_is_missing(photo_config: ConfigDict) -> None:
    folder = Path(photo_config.directory) / "tiny" / "1.0.0"
    next(folder.glob("*.array_record*")).unlink()
    with pytest.raises(UserError, match=r"'tiny'.*(damaged|cannot be read)"):
        sources.check_data(photo_config)


def test_a_cache_that_would_be_too_large(
    data_config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_CACHE_BYTES", 1500 * 8 * 8 - 1)
    for refuse in (
        sources.check_data,
        lambda config: sources.open_source(config, "train"),
    ):
        with pytest.raises(UserError, match=r"1500 examples.*data\.cache=False"):
            refuse(data_config)
    sources.check_data(changed(data_config, cache=False))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_broken_image_is_named(data_config: ConfigDict, num_threads: int) -> None:
    good = sources.open_source(changed(data_config, cache=False), "test")
    assert isinstance(good, TfdsSource)
    records = list(good.records)
    records[11] = {**records[11], "image": b"\x89PNG\r\n\x1a\n nonsense"}
    source = TfdsSource("digits8", "test", records, good.config)
    source.read(np.array([10, 12]))
    with pytest.raises(UserError, match=r"example 11 of split 'test' .*'digits8'"):
        sources.all_examples(source, num_threads)
