"""Sample files: the ADM layout, and what is said of wrong files."""

from pathlib import Path

import numpy as np
import pytest

from multistep_cm.errors import UserError
from multistep_cm.evaluation.npz import (
    load_samples,
    read_arrays,
    save_samples,
    write_arrays,
)

IMAGES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


@pytest.mark.parametrize("labels", [None, np.array([3, 1])])
def test_round_trip_in_the_adm_layout(
    tmp_path: Path, labels: np.ndarray | None
) -> None:
    path = save_samples(tmp_path / "new" / "samples.npz", IMAGES, labels)
    with np.load(path) as file:
        assert file.files == (["arr_0"] if labels is None else ["arr_0", "arr_1"])
        assert file["arr_0"].dtype == np.uint8
    images, read = load_samples(path)
    np.testing.assert_array_equal(images, IMAGES)
    if labels is None:
        assert read is None
    else:
        np.testing.assert_array_equal(read, labels)
    assert [p.name for p in path.parent.iterdir()] == ["samples.npz"]


def test_saving_refuses_what_the_layout_does_not_hold(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    with pytest.raises(ValueError, match="uint8"):
        save_samples(path, IMAGES.astype(np.float32))
    with pytest.raises(ValueError, match="labels must be integers"):
        save_samples(path, IMAGES, np.array([1]))
    with pytest.raises(UserError, match=r"must end in \.npz"):
        save_samples(tmp_path / "samples", IMAGES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "expected the images under 'arr_0'"),
        ({"arr_0": IMAGES.astype(np.int64)}, "got int64"),
        ({"arr_0": IMAGES[0]}, r"\[4, 4, 3\]"),
        ({"arr_0": IMAGES, "arr_1": np.ones(2)}, "got float64"),
    ],
)
def test_another_layout_is_one_sentence(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    path = write_arrays(tmp_path / "other.npz", arrays)
    with pytest.raises(UserError, match=message):
        load_samples(path)


def test_missing_and_damaged_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_samples(tmp_path / "none.npz")
    path = save_samples(tmp_path / "samples.npz", IMAGES)
    whole = path.read_bytes()
    for broken in (b"", b"no archive", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="not a readable"):
            load_samples(path)
    np.save(tmp_path / "one.npy", IMAGES)
    (tmp_path / "one.npy").rename(path)
    with pytest.raises(UserError, match="single array"):
        load_samples(path)


def test_every_flipped_data_bit_is_noticed(tmp_path: Path) -> None:
    path = save_samples(tmp_path / "samples.npz", IMAGES)
    whole = bytearray(path.read_bytes())
    start = whole.index(IMAGES.tobytes())
    for position in range(start, start + IMAGES.nbytes, 7):
        broken = bytearray(whole)
        broken[position] ^= 1
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="CRC"):
            read_arrays(path)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, arr_0=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="not a readable"):
        load_samples(path)
