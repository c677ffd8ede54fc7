"""Reading the images of a folder: pixels, kinds of files, position, bad files."""

import dataclasses
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from multistep_cm.config import default_config
from multistep_cm.data import sources
from multistep_cm.data.bad_records import BadRecordError
from multistep_cm.data.folder_source import FolderSource
from multistep_cm.data.pipeline import Batches, DataIterator
from multistep_cm.errors import UserError

SIZE = 6
RNG = np.random.default_rng(0)


def random_image(*shape: int) -> np.ndarray:
    return RNG.integers(256, size=shape, dtype=np.uint8)


@pytest.fixture
def images() -> dict[str, np.ndarray]:
    """Forty pictures that fit, by their path."""
    return {f"{k}/{i:02}.png": random_image(SIZE, SIZE, 3) for k in "ab" for i in RANGE}


RANGE = range(20)


@pytest.fixture
def config(tmp_path: Path, images: dict[str, np.ndarray]) -> ConfigDict:
    for path, image in images.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / path)
    data = default_config().data
    data.name, data.directory = sources.FOLDER, str(tmp_path)
    data.image_size, data.channels, data.num_classes = SIZE, 3, 2
    data.cache = False
    return data


def opened(config: ConfigDict, split: str = "train") -> FolderSource:
    source = sources.open_source(config, split)
    assert isinstance(source, FolderSource)
    return source


def test_images_and_labels_are_those_of_the_files(
    config: ConfigDict, images: dict[str, np.ndarray]
) -> None:
    seen = []
    for split, number in (("train", 36), ("test", 4)):
        source = opened(config, split)
        assert len(source) == number
        found = source.read(np.arange(number)[::-1])
        assert found["label"].dtype == np.int32
        for row, path in enumerate(reversed(source.files.paths)):
            np.testing.assert_array_equal(found["image"][row], images[path])
            assert found["label"][row] == "ab".index(path[0])
            seen.append(path)
    assert sorted(seen) == sorted(images)
    np.testing.assert_array_equal(source[0]["image"], images[source.files.paths[0]])
    with pytest.raises(IndexError, match="4 of 4"):
        source[4]


def test_cached_is_uncached(config: ConfigDict) -> None:
    source = opened(config)
    config.cache = True
    cached = sources.open_source(config, "train")
    assert isinstance(cached, sources.ArraySource)
    assert cached.fingerprint == source.fingerprint
    for key, value in source.read(np.arange(36)).items():
        np.testing.assert_array_equal(cached.read(np.arange(36))[key], value)


def test_two_processes_read_disjoint_parts_of_one_batch(
    config: ConfigDict, images: dict[str, np.ndarray]
) -> None:
    by_bytes = {image.tobytes(): path for path, image in images.items()}
    read: list[set[str]] = [set(), set()]
    for step in range(3):  # an epoch of 36
        for shard in range(2):
            batches = Batches(opened(config), 12, 0, shard=shard, num_shards=2)
            batch = batches.host_batch(step)
            read[shard] |= {by_bytes[image.tobytes()] for image in batch["image"]}
    assert not read[0] & read[1]
    assert read[0] | read[1] == set(opened(config).files.paths)


def test_a_changed_folder_is_not_taken_for_the_same(
    config: ConfigDict, tmp_path: Path
) -> None:
    state = DataIterator(Batches(opened(config), 8, 0)).state()
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    config.directory = str(moved)
    DataIterator(Batches(opened(config), 8, 0)).restore(state)
    (moved / opened(config).files.paths[3]).rename(moved / "a" / "other.png")
    with pytest.raises(UserError, match=r"file_names was '[0-9a-f]{16}' and is"):
        DataIterator(Batches(opened(config), 8, 0)).restore(state)


def test_a_dataset_of_tfds_keeps_its_identity() -> None:
    """Positions saved before there were folders are still good."""
    source = sources.ArraySource("n", "train", np.zeros((4, 2, 2, 1)), np.arange(4))
    state = DataIterator(Batches(source, 2, 0)).state()
    assert "file_names" not in state
    named = dataclasses.replace(source, fingerprint="abc")
    assert DataIterator(Batches(named, 2, 0)).state()["file_names"] == "abc"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def one_image(config: ConfigDict, contents: bytes, name: str = "x.png") -> np.ndarray:
    """The only image of the folder, read."""
    folder = Path(config.directory) / "single"
    folder.mkdir()
    (folder / name).write_bytes(contents)
    config.update({"directory": str(folder), "num_classes": 0})
    config.evaluation_split = config.train_split
    return opened(config)[0]["image"]


COLOR = random_image(SIZE, SIZE, 3)
GRAY = random_image(SIZE, SIZE)
ALPHA = np.concatenate([COLOR, random_image(SIZE, SIZE, 1)], -1)
OVER_WHITE = 255 - (255 - COLOR.astype(float)) * (ALPHA[..., 3:] / 255)
PALETTE = Image.fromarray(COLOR).quantize(8)


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (encoded(Image.fromarray(GRAY), "PNG"), np.stack([GRAY] * 3, -1)),
        (encoded(Image.fromarray(GRAY), "PPM"), np.stack([GRAY] * 3, -1)),
        (encoded(Image.fromarray(COLOR), "BMP"), COLOR),
        (encoded(Image.fromarray(COLOR), "WEBP", lossless=True), COLOR),
        (encoded(Image.fromarray(ALPHA), "PNG"), OVER_WHITE),
        (encoded(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
        (encoded(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB"))),
        (
            encoded(PALETTE, "PNG", transparency=int(np.asarray(PALETTE)[0, 0])),
            np.where(
                (np.asarray(PALETTE) == np.asarray(PALETTE)[0, 0])[..., None],
                255,
                np.asarray(PALETTE.convert("RGB")),
            ),
        ),
        (
            encoded(Image.fromarray(GRAY > 127), "PNG"),
            np.stack([(GRAY > 127) * 255] * 3, -1),
        ),
        (
            encoded(Image.fromarray(GRAY.astype(np.uint16) * 257), "PNG"),
            np.stack([GRAY] * 3, -1),
        ),
        (
            encoded(Image.fromarray(GRAY.astype(np.uint16) * 257), "TIFF"),
            np.stack([GRAY] * 3, -1),
        ),
    ],
    ids=[
        *("gray", "pgm", "bmp", "webp", "alpha", "palette", "gif", "transparent"),
        *("bits", "png16", "tiff16"),
    ],
)
def test_kinds_of_images(
    config: ConfigDict, contents: bytes, expected: np.ndarray
) -> None:
    found = one_image(config, contents)
    assert np.abs(found - np.asarray(expected, float)).max() < 1


def test_cmyk_jpeg_is_the_picture_in_colour(config: ConfigDict) -> None:
    smooth = Image.new("RGB", (SIZE, SIZE), (200, 60, 20))
    contents = encoded(smooth.convert("CMYK"), "JPEG", quality=100)
    assert np.abs(one_image(config, contents) - [200.0, 60, 20]).max() < 4


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda image: image),
        (2, lambda image: image[:, ::-1]),
        (3, lambda image: image[::-1, ::-1]),
        (6, lambda image: np.rot90(image, -1)),
        (8, lambda image: np.rot90(image, 1)),
    ],
)
def test_photographs_are_upright(
    config: ConfigDict,
    orientation: int,
    turned: Callable[[np.ndarray], np.ndarray],
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    contents = encoded(Image.fromarray(COLOR), "PNG", exif=exif)
    np.testing.assert_array_equal(one_image(config, contents), turned(COLOR))


NAMED = r"x\.png' \(example 0 of 'train'\) cannot be read"
DEEP = Image.fromarray(np.full((4, 4), 70000, np.int32))
WHOLE = encoded(Image.fromarray(random_image(64, 64, 3)), "PNG")


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (b"", "it is in no format that Pillow reads"),
        (b"<html>not found</html>", "it is in no format that Pillow reads"),
        (WHOLE[: len(WHOLE) // 2], "truncated"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "floating point.* 8 or 16"),
        (encoded(DEEP, "TIFF"), "beyond 16 bits, expected 8 or 16"),
    ],
    ids=["empty", "html", "half", "float", "deep"],
)
def test_a_file_that_cannot_be_read_is_named(
    config: ConfigDict, contents: bytes, expected: str
) -> None:
    with pytest.raises(BadRecordError, match=rf"{NAMED}: .*{expected}") as e:
        one_image(config, contents)
    assert "\n" not in str(e.value)
    assert "--config.data.bad_record_fraction=0.01" in str(e.value)


def test_a_file_that_went_away_is_named(config: ConfigDict) -> None:
    source = opened(config)
    (source.files.root / source.files.paths[5]).unlink()
    source.read(np.array([4, 6]))
    with pytest.raises(UserError, match=rf"{source.files.paths[5]}' cannot be read"):
        sources.all_examples(source, 2)


def test_a_picture_too_large_for_the_memory_is_not_opened(config: ConfigDict) -> None:
    """Four gigapixels, said by a file of sixty bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data).to_bytes(4)
        return len(data).to_bytes(4) + kind + data + checksum

    head = struct.pack(">IIBBBBB", 2**16, 2**16, 8, 2, 0, 0, 0)
    contents = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"")
    with pytest.raises(BadRecordError, match=r"x.png.* exceeds limit of \d+ pixels"):
        one_image(config, contents)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_does_not_end_is_not_read(config: ConfigDict, kind: str) -> None:
    path = Path(config.directory) / "a" / "endless.png"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    source = opened(config)
    with pytest.raises(UserError, match=r"endless.png.* a pipe or device, expected a"):
        source.read(np.array([source.files.paths.index("a/endless.png")]))


def test_the_check_reads_one_image_of_each_split_and_says_what_is_there(
    config: ConfigDict, capsys: pytest.CaptureFixture[str]
) -> None:
    sources.check_data(config)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("36 train and 4 test images, 2 classes ('a' .. 'b')")
    source = opened(config, "test")
    assert not capsys.readouterr().out
    (source.files.root / source.files.paths[0]).write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        sources.check_data(config)


def test_a_split_that_the_config_does_not_name(config: ConfigDict) -> None:
    with pytest.raises(UserError, match=r"'tset' .* expected 'train', 'test'"):
        sources.open_source(config, "tset")


def test_a_folder_where_a_name_is_expected(config: ConfigDict) -> None:
    config.name, config.directory = config.directory, ""
    with pytest.raises(UserError, match=r"which is a folder.*data\.name=folder"):
        sources.check_data(config)
