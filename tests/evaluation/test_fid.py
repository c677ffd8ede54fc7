"""The meter against scipy, and reference files: round trips and wrong ones."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from multistep_cm.errors import UserError
from multistep_cm.evaluation import fid
from multistep_cm.evaluation.activations import Extractor
from multistep_cm.evaluation.fid import (
    FidMeter,
    FidReference,
    kept_indices,
    measure_reference,
    read_reference,
    with_features,
    write_reference,
)
from multistep_cm.evaluation.npz import write_arrays
from multistep_cm.sharding.mesh import make_mesh
from tests.evaluation import tiny

REAL, SAMPLES = tiny.make_images(90, 0), tiny.make_images(60, 1) // 2


def silent(done: int) -> None:
    pass


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid, "NUM_FEATURES", tiny.POOL)
    monkeypatch.setattr(fid, "NUM_SPATIAL", tiny.SPATIAL)


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    mesh = make_mesh({"data": 4, "fsdp": 2, "tensor": 1})
    return Extractor(tiny.taps, tiny.make_params(48), mesh)


@pytest.fixture(scope="module")
def reference(extractor: Extractor) -> Iterator[FidReference]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fid, "NUM_FEATURES", tiny.POOL)
        patch.setattr(fid, "KEPT_IMAGES", 40)
        yield measure_reference(extractor, REAL.__getitem__, 90, "data", silent)


def direct(a: np.ndarray, b: np.ndarray) -> float:
    """As the ADM evaluator computes it."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(first @ second))
    shift = a.mean(axis=0) - b.mean(axis=0)
    return float(shift @ shift + np.trace(first + second - 2 * root))


def test_numbers_are_those_of_scipy(
    extractor: Extractor, reference: FidReference
) -> None:
    found = FidMeter(extractor, reference, "abc").measure(SAMPLES, silent)
    real = tiny.expected(extractor.params, REAL)
    samples = tiny.expected(extractor.params, SAMPLES)
    for key, tap in (("fid", "2048"), ("sfid", "spatial")):
        assert found[key] == pytest.approx(direct(samples[tap], real[tap]), rel=1e-4)
    assert 0 <= found["precision"] <= 1
    assert 0 <= found["recall"] <= 1
    assert 1 < found["inception_score"] < tiny.CLASSES
    assert found["fid_reference"] == "data"
    assert found["fid_reference_images"] == 90
    assert found["inception_sha256"] == "abc"


def test_the_real_images_are_perfect(
    extractor: Extractor, reference: FidReference
) -> None:
    found = FidMeter(extractor, reference, "").measure(REAL, silent)
    assert found["fid"] < 1e-9
    assert found["sfid"] < 1e-9
    # Those that are kept are among them.
    assert found["recall"] == 1.0
    assert reference.features is not None
    assert len(reference.features) == 40


def test_a_written_reference_measures_the_same(
    extractor: Extractor, reference: FidReference, tmp_path: Path
) -> None:
    images = REAL[np.arange(40) * 90 // 40]
    path = write_reference(
        tmp_path / "real.npz",
        FidReference(reference.pool, reference.spatial, images, 90, "data"),
    )
    read = with_features(extractor, read_reference(path, 4), silent)
    found = FidMeter(extractor, read, "").measure(SAMPLES, silent)
    expected = FidMeter(extractor, reference, "").measure(SAMPLES, silent)
    for key in ("fid", "sfid", "inception_score", "precision", "recall"):
        assert found[key] == pytest.approx(expected[key], rel=1e-9), key
    assert found["fid_reference"].startswith("real.npz (sha256 ")
    assert found["fid_reference_images"] == 90


def test_the_file_is_one_of_the_adm_evaluator(
    reference: FidReference, tmp_path: Path
) -> None:
    """It reads mu, sigma, mu_s, sigma_s of all real images, and images in arr_0."""
    whole = FidReference(reference.pool, reference.spatial, REAL[:40], 90, "data")
    path = write_reference(tmp_path / "real.npz", whole)
    params = tiny.make_params(48)
    features = tiny.expected(params, REAL)
    with np.load(path) as file:
        arrays = dict(file)
    for suffix, tap in (("", "2048"), ("_s", "spatial")):
        values = features[tap]
        np.testing.assert_allclose(arrays[f"mu{suffix}"], values.mean(axis=0), 1e-5)
        sigma = arrays[f"sigma{suffix}"]
        np.testing.assert_allclose(sigma, np.cov(values, rowvar=False), 1e-4, 1e-5)
    np.testing.assert_array_equal(arrays["arr_0"], REAL[:40])


def test_statistics_alone_give_fid_alone(
    extractor: Extractor, reference: FidReference, tmp_path: Path
) -> None:
    pool = reference.pool
    arrays = {"mu": pool.mean, "sigma": pool.covariance.astype(np.float32)}
    path = write_arrays(tmp_path / "pytorch_fid.npz", arrays)
    read = with_features(extractor, read_reference(path, 4), silent)
    found = FidMeter(extractor, read, "").measure(SAMPLES, silent)
    expected = FidMeter(extractor, reference, "").measure(SAMPLES, silent)
    assert found["fid"] == pytest.approx(expected["fid"], rel=1e-5)
    assert found["inception_score"] == expected["inception_score"]
    missing = ("sfid", "precision", "recall", "fid_reference_images")
    assert [found[key] for key in missing] == [None] * 4


def test_kept_images_lie_at_equal_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid, "KEPT_IMAGES", 4)
    np.testing.assert_array_equal(kept_indices(3), [0, 1, 2])
    np.testing.assert_array_equal(kept_indices(10), [0, 2, 5, 7])
    assert kept_indices(2**40)[-1] == 3 * 2**38


def test_too_few_images_say_how_many_are_needed(
    extractor: Extractor, reference: FidReference
) -> None:
    read = REAL.__getitem__
    with pytest.raises(UserError, match="are 6 real images, but FID needs more than 6"):
        measure_reference(extractor, read, 6, "data", silent)
    with pytest.raises(UserError, match="are 6 samples, but FID needs more than 6"):
        FidMeter(extractor, reference, "").measure(SAMPLES[:6], silent)


EYE, ZEROS = np.eye(tiny.POOL), np.zeros(tiny.POOL)
GOOD = {"mu": ZEROS, "sigma": EYE}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"arr_0": REAL}, r"holds \['arr_0'\] but no 'mu': expected the statistics"),
        ({"mu": ZEROS}, "but no 'sigma'"),
        ({"mu": np.zeros(64), "sigma": EYE}, r"mu is float64 \[64\], expected floats"),
        ({"mu": ZEROS, "sigma": np.eye(5)}, r"sigma is float64 \[5, 5\], expected"),
        ({"mu": ZEROS, "sigma": EYE.astype(int)}, "sigma is int64"),
        ({"mu": ZEROS * np.nan, "sigma": EYE}, "mu holds NaN"),
        ({"mu": ZEROS, "sigma": np.triu(np.ones((6, 6)))}, "sigma is no covariance"),
        ({"mu": ZEROS, "sigma": -EYE}, "sigma is no covariance"),
        (GOOD | {"mu_s": np.zeros(4)}, "but no 'sigma_s'"),
        (GOOD | {"mu_s": ZEROS, "sigma_s": EYE}, r"mu_s is float64 \[6\]"),
        (GOOD | {"num_images": np.array(6)}, "6 real images behind .* more than 6"),
        (GOOD | {"num_images": np.array([7])}, r"num_images is int64 \[1\]"),
        (GOOD | {"arr_0": REAL / 255}, "arr_0 is float64"),
        (GOOD | {"arr_0": REAL[:, :2]}, r"images \[2, 4, 3\], but the samples are 4x4"),
    ],
)
def test_another_layout_is_one_sentence(
    arrays: dict[str, np.ndarray], said: str, tmp_path: Path
) -> None:
    path = write_arrays(tmp_path / "other.npz", arrays)
    with pytest.raises(UserError, match=said):
        read_reference(path, 4)


def test_missing_and_broken_files_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "real.npz"
    with pytest.raises(UserError, match=r"does not exist; name an \.npz of reference"):
        read_reference(path, 4)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"is not a readable \.npz"):
        read_reference(path, 4)
