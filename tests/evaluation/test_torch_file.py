"""Files that torch wrote, in both of its layouts, and files that it did not."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from multistep_cm.evaluation.torch_file import read_tensors

DATA = Path(__file__).parent / "data"
LAYOUTS = ("zip", "sequence")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_torch_wrote(layout: str) -> None:
    found = read_tensors(DATA / f"{layout}.pth")
    block = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    expected: dict[str, np.ndarray] = {
        "weight": np.ones(3, np.float32),
        "bias": np.zeros(3, np.float32),
        "running_mean": np.zeros(3, np.float32),
        "running_var": np.ones(3, np.float32),
        "num_batches_tracked": np.array(0, np.int64),
        "parameter": np.arange(6, dtype=np.float32).reshape(2, 3),
        "transposed": block.swapaxes(1, 2),
        "part": np.array([3, 5], np.int64),
        "half": np.array([0.5, -2.0], np.float16),
        "scalar": np.array(7.0, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_cut_anywhere_is_refused(layout: str, tmp_path: Path) -> None:
    whole = (DATA / f"{layout}.pth").read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"."):
            read_tensors(path)


# Words that would call something, were they executed: os.system("touch ..") and others.
CALLS = {
    "system": b"cos\nsystem\n(S'touch %s'\ntR.",
    "eval": b"\x80\x02cbuiltins\neval\nX\x04\x00\x00\x00open\x85R.",
    "instance": b"(ios\nsystem\nS'touch %s'\no.",
    "object": b"\x80\x02cos\nsystem\n)\x81.",
    "extension": b"\x80\x02\x82\x01.",
    "set state": b"\x80\x02}X\x01\x00\x00\x00acos\nsystem\ns.",
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_ever_called(name: str, layout: str, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    words = CALLS[name].replace(b"%s", str(touched).encode())
    path = tmp_path / "evil.pth"
    if layout == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", words)
    else:
        path.write_bytes(words)
    with pytest.raises(ValueError, match=r"."):
        read_tensors(path)
    assert not touched.exists()


def test_a_tensor_may_not_reach_out_of_its_storage(tmp_path: Path) -> None:
    """The shape of `parameter`, (2, 3), becomes (2, 4)."""
    path = tmp_path / "reach.pth"
    with (
        zipfile.ZipFile(DATA / "zip.pth") as old,
        zipfile.ZipFile(path, "w") as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert data.count(b"K\x02K\x03\x86") == 1
                data = data.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86")
            new.writestr(name, data)
    with pytest.raises(ValueError, match="reaches out of its storage"):
        read_tensors(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    with pytest.raises(FileNotFoundError):
        read_tensors(path)
    np.savez(path.with_suffix(".npz"), arr_0=np.zeros(3))
    path.with_suffix(".npz").rename(path)
    with pytest.raises(ValueError, match="not one of tensors"):
        read_tensors(path)
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match="no file of tensors"):
        read_tensors(path)
