"""Files of arrays: damaged in their bytes, and whole ones that hold something else."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from multistep_cm.errors import UserError
from multistep_cm.evaluation.features import load_classifier
from multistep_cm.evaluation.fid import read_reference
from multistep_cm.evaluation.inception_weights import read_weights
from multistep_cm.evaluation.npz import load_samples, read_arrays
from multistep_cm.evaluation.torch_file import read_tensors
from tests.fuzz.invariant import assert_one_sentence, hypothesis_settings, refusal
from tests.fuzz.mutations import mutated

DATA = Path(__file__).parents[1] / "evaluation" / "data"
READERS: dict[str, Callable[[Path], Any]] = {
    "samples": load_samples,
    "classifier": load_classifier,
    "reference": lambda path: read_reference(path, 8),
    "weights": read_weights,
    "arrays": read_arrays,
    "tensors": read_tensors,
}
DECLARED = (OSError, ValueError)
"""What a reader may raise beside UserError; who calls it makes a sentence of them."""


def check(reader: str, path: Path) -> Any:
    """What was read; None where it was refused, in one line."""
    found: list[Any] = []
    try:
        said = refusal(lambda: found.append(READERS[reader](path)))
    except DECLARED as error:
        assert_one_sentence(str(UserError(error)))
        return None
    assert found or str(path) in said
    return found[0] if found else None


def npz(compressed: bool, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    save: Any = np.savez_compressed if compressed else np.savez
    save(file, **arrays)
    return file.getvalue()


ARRAYS = {
    "arr_0": np.arange(16, dtype=np.uint8).reshape(2, 2, 2, 2),
    "arr_1": np.array([1, 2]),
    "mu": np.zeros(3),
    "sigma": np.eye(3),
    "num_images": np.array(4096),
    "params/Dense_0/kernel": np.ones((2, 3), np.float32),
    "image_shape": np.array([2, 2, 1]),
    "num_classes": np.array(2),
    "feature_scale": np.array(1.0),
    "test_accuracy": np.array(1.0),
    "fingerprint": np.array("abc"),
    "source_sha256": np.array("0" * 64),
}
SAMPLES = {name: ARRAYS[name] for name in ("arr_0", "arr_1")}
WHOLE = {flag: npz(flag, **SAMPLES) for flag in (True, False)}


@pytest.mark.parametrize("compressed", [True, False])
@given(data=st.data())
@hypothesis_settings
def test_a_damaged_npz(compressed: bool, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    path.write_bytes(data.draw(mutated(WHOLE[compressed])))
    found = check("samples", path)
    if found is not None:  # what is not pixels may have changed, such as a date
        np.testing.assert_array_equal(found[0], ARRAYS["arr_0"])
    for reader in ("classifier", "reference", "weights"):
        check(reader, path)


@given(st.data())
@hypothesis_settings
def test_an_npz_of_other_arrays(tmp_path: Path, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(ARRAYS)), unique=True))
    arrays = {name: ARRAYS[name] for name in names}
    for name in data.draw(st.lists(st.sampled_from(sorted(ARRAYS)), max_size=2)):
        dtype = data.draw(hnp.scalar_dtypes())
        shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=3))
        arrays[name] = data.draw(hnp.arrays(dtype, shape))
    path = tmp_path / "some.npz"
    path.write_bytes(npz(data.draw(st.booleans()), **arrays))
    for reader in ("samples", "classifier", "reference", "weights"):
        check(reader, path)


@given(
    header=st.text(max_size=40)
    | st.builds(
        "{{'descr': {}, 'fortran_order': {}, 'shape': {}}}".format,
        st.sampled_from(
            ["'|u1'", "'<f8'", "'|O'", "'|V0'", "'|S0'", "[('a','|O')]", "1"]
        )
        | st.text(max_size=5).map(repr),
        st.sampled_from(["False", "True", "2", "None"]),
        st.lists(st.integers(-2, 2**62), max_size=3).map(lambda x: repr(tuple(x))),
    ),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]),
    length=st.none() | st.integers(0, 2**16 - 1),
    body=st.binary(max_size=32),
)
@hypothesis_settings
def test_a_header_of_an_array(
    header: str, version: tuple[int, int], length: Any, body: bytes, tmp_path: Path
) -> None:
    text = header.encode("utf-8", "replace")
    size = (len(text) if length is None else length).to_bytes(
        2 if version == (1, 0) else 4, "little"
    )
    path = tmp_path / "some.npz"
    with zipfile.ZipFile(path, "w") as archive:
        entry = b"\x93NUMPY" + bytes(version) + size + text + body
        archive.writestr("arr_0.npy", entry)
    check("samples", path)


@pytest.mark.parametrize("layout", ["zip", "sequence"])
@given(data=st.data())
@hypothesis_settings
def test_damaged_weights(layout: str, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    path.write_bytes(data.draw(mutated((DATA / f"{layout}.pth").read_bytes())))
    found = check("tensors", path)
    assert found is None or all(isinstance(a, np.ndarray) for a in found.values())
    assert check("weights", path) is None


PICKLES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from([zipfile.ZipFile, print, Path("x"), 2**5000]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("layout", ["zip", "sequence"])
@given(value=PICKLES, protocol=st.integers(0, 5), data=st.data())
@hypothesis_settings
def test_other_descriptions(
    layout: str, value: Any, protocol: int, data: st.DataObject, tmp_path: Path
) -> None:
    """Whatever pickle writes, and any changed word of it."""
    path = tmp_path / "some.pth"
    words = pickle.dumps(value, protocol)
    if data.draw(st.booleans()):
        words = data.draw(mutated(words))
    if layout == "sequence":
        path.write_bytes(words)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", words)
            archive.writestr("a/data/0", bytes(8))
    check("tensors", path)


@given(data=st.data())
@hypothesis_settings
def test_a_changed_description_in_a_whole_archive(
    data: st.DataObject, tmp_path: Path
) -> None:
    """The archive's own sums are right again, so that only the reader can notice."""
    path = tmp_path / "some.pth"
    with (
        zipfile.ZipFile(DATA / "zip.pth") as old,
        zipfile.ZipFile(path, "w") as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = data.draw(mutated(content))
            new.writestr(name, content)
    check("tensors", path)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file(reader: str, tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "empty.npz").touch()
    for name in ("folder.npz", "empty.npz", "none.npz", "empty.npz/x", "a" * 300):
        assert check(reader, tmp_path / name) is None
    assert check(reader, Path("/dev/zero")) is None
