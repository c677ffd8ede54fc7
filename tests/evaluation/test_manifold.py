"""Precision and recall against a direct computation and against known answers."""

import numpy as np
import pytest
from jax.sharding import Mesh
from scipy.spatial.distance import cdist

from multistep_cm.errors import UserError
from multistep_cm.evaluation import manifold
from multistep_cm.evaluation.manifold import precision_and_recall, radii
from multistep_cm.sharding.mesh import make_mesh


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh({"data": 2, "fsdp": 2, "tensor": 2})


def draw(count: int, size: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, size)) + shift).astype(np.float32)


def direct(real: np.ndarray, samples: np.ndarray, k: int) -> tuple[float, float]:
    def inside(points: np.ndarray, centres: np.ndarray) -> float:
        reach = np.sort(cdist(centres, centres), axis=1)[:, k]
        return float(np.mean((cdist(points, centres) <= reach).any(axis=1)))

    real, samples = real.astype(np.float64), samples.astype(np.float64)
    return inside(samples, real), inside(real, samples)


@pytest.mark.parametrize("counts", [(200, 150), (33, 70), (64, 64)])
@pytest.mark.parametrize("k", [1, 3])
def test_agrees_with_all_distances(
    counts: tuple[int, int], k: int, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifold, "BLOCK", 32)
    # Far from the origin, where float32 has few digits for squares.
    real = draw(counts[0], 3, 0, shift=30.0)
    samples = draw(counts[1], 3, 1, shift=30.5)
    found = precision_and_recall(real, samples, mesh, k)
    expected = direct(real, samples, k)
    assert 0.1 < min(expected) < 1
    assert found == pytest.approx(expected, abs=1e-12)


def test_radii_are_the_distances_to_the_kth_other(mesh: Mesh) -> None:
    line = np.array([[0.0], [1.0], [3.0], [7.0], [15.0]], np.float32)
    np.testing.assert_array_equal(radii(line, mesh, 1), [1, 1, 4, 16, 64])
    np.testing.assert_array_equal(radii(line, mesh, 2), [9, 4, 9, 36, 144])


def test_known_answers(mesh: Mesh) -> None:
    real = draw(60, 5, 0)
    assert precision_and_recall(real, real, mesh) == (1.0, 1.0)
    assert precision_and_recall(real, real + 100.0, mesh) == (0.0, 0.0)
    # All samples are one real image: in the manifold, of which they are no part.
    same = np.repeat(real[:1], 10, axis=0)
    precision, recall = precision_and_recall(real, same, mesh)
    assert precision == 1.0
    assert recall <= 1 / 60
    # Half of the samples are far away.
    half = np.concatenate([real[:30], real[30:] + 100.0])
    assert precision_and_recall(real, half, mesh)[0] == 0.5


def test_too_few_images_and_other_sizes(mesh: Mesh) -> None:
    few, many = draw(3, 4, 0), draw(8, 4, 1)
    with pytest.raises(UserError, match="more than 3 real images; there are 3"):
        precision_and_recall(few, many, mesh)
    with pytest.raises(UserError, match="more than 3 samples; there are 3"):
        precision_and_recall(many, few, mesh)
    with pytest.raises(ValueError, match="do not compare"):
        precision_and_recall(many, draw(8, 5, 0), mesh)
