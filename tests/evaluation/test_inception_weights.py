"""Weight files: what is accepted, and the sentence for every other file."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from multistep_cm.errors import UserError
from multistep_cm.evaluation import inception_weights
from multistep_cm.evaluation.inception_weights import (
    SHA256,
    URL,
    check_arrays,
    expected_shapes,
    load_weights,
    read_weights,
    save_weights,
    to_params,
)
from tests.evaluation import seeded

DATA = Path(__file__).parent / "data"
WHERE = f"get it from {URL} .*sha256 {SHA256}"


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return seeded.weights(expected_shapes())


def test_the_name_of_the_file_holds_its_hash() -> None:
    assert f"-{SHA256[:8]}.pth" in URL
    assert len(SHA256) == 64


def test_the_network_has_the_arrays_of_the_published_one() -> None:
    shapes = expected_shapes()
    assert len(shapes) == 94 * 5 + 2
    assert sum(np.prod(shape) for shape in shapes.values()) == 23_885_392
    assert shapes["Mixed_6d.branch7x7dbl_5.conv.weight"] == (192, 160, 1, 7)
    assert shapes["Mixed_7c.branch3x3_2b.conv.weight"] == (384, 384, 3, 1)


def test_normalisation_is_folded_into_the_convolution(
    arrays: dict[str, np.ndarray],
) -> None:
    params = to_params(arrays)["Mixed_5b"]["branch5x5_2"]
    part = {
        name.removeprefix("Mixed_5b.branch5x5_2."): array.astype(np.float64)
        for name, array in arrays.items()
        if name.startswith("Mixed_5b.branch5x5_2.")
    }
    x = np.random.default_rng(0).standard_normal((48, 5, 5))
    before = np.einsum("oihw,ihw->o", part["conv.weight"], x)
    expected = (before - part["bn.running_mean"]) / np.sqrt(
        part["bn.running_var"] + 1e-3
    ) * part["bn.weight"] + part["bn.bias"]
    found = np.einsum("hwio,ihw->o", params["kernel"], x) + params["bias"]
    assert params["kernel"].dtype == params["bias"].dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_our_npz_gives_back_the_same_arrays(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = save_weights(tmp_path / "inception.npz", arrays, SHA256)
    found = read_weights(path)
    assert found.keys() == arrays.keys()
    for name in ("fc.weight", "Mixed_7a.branch7x7x3_3.conv.weight"):
        np.testing.assert_array_equal(found[name], arrays[name])
    kernel = load_weights(path)["fc"]["kernel"]
    np.testing.assert_array_equal(kernel, arrays["fc.weight"].T)


def test_a_pth_is_read_where_its_hash_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    path = DATA / "sequence.pth"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(inception_weights, "SHA256", digest)
    with pytest.raises(UserError, match="it lacks Conv2d_1a_3x3"):
        read_weights(path)


def test_another_file_is_refused_and_the_right_one_named(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"is no file: {WHERE}"):
        load_weights(tmp_path / "none.pth")
    digest = hashlib.sha256((DATA / "zip.pth").read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"its sha256 is {digest}: {WHERE}"):
        load_weights(DATA / "zip.pth")
    random = save_weights(tmp_path / "random.npz", {"a": np.zeros(1)}, "0" * 64)
    with pytest.raises(UserError, match=f"its sha256 is {'0' * 64}: {WHERE}"):
        load_weights(random)
    np.savez(tmp_path / "plain.npz", a=np.zeros(1))
    with pytest.raises(UserError, match="its sha256 is not said"):
        load_weights(tmp_path / "plain.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_weights(tmp_path / "broken.npz")


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("fc.bias", None, "it lacks fc.bias"),
        ("fc.bias", np.zeros(1000, np.float32), r"\[1000\], expected floats \[1008\]"),
        ("fc.bias", np.zeros(1008, np.int32), "fc.bias is int32"),
        ("fc.bias", np.full(1008, np.nan), "fc.bias holds NaN"),
        ("AuxLogits.fc.bias", np.zeros(3), "it holds AuxLogits.fc.bias"),
    ],
)
def test_arrays_of_another_network(
    arrays: dict[str, np.ndarray], name: str, array: np.ndarray | None, said: str
) -> None:
    others = {key: value for key, value in arrays.items() if key != name}
    if array is not None:
        others[name] = array
    with pytest.raises(UserError, match=said):
        check_arrays("file.pth", others)
    counters = {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(0)}
    check_arrays("file.pth", arrays | counters)
