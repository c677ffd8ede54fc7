"""The estimated spread of a Fréchet distance: against new samples, copies, one axis."""

import numpy as np
import pytest

from multistep_cm.evaluation.frechet import Moments, frechet_distance
from multistep_cm.evaluation.spread import frechet_deviation


@pytest.fixture(scope="module")
def reference() -> Moments:
    return Moments.of(np.random.default_rng(0).standard_normal((2000, 8)))


def samples(seed: int, count: int = 500) -> np.ndarray:
    return 1.2 * np.random.default_rng(seed).standard_normal((count, 8)) + 0.2


def test_it_is_the_spread_over_sets_of_new_samples(reference: Moments) -> None:
    distances = [
        frechet_distance(Moments.of(samples(seed)), reference) for seed in range(300)
    ]
    found = [frechet_deviation(samples(seed), reference) for seed in range(8)]
    assert np.mean(found) == pytest.approx(np.std(distances, ddof=1), rel=0.12)


def test_it_is_the_spread_of_the_bootstrap(reference: Moments) -> None:
    features = samples(1)
    rng = np.random.default_rng(7)
    distances = []
    for _ in range(300):
        copies = features[rng.integers(500, size=500)]
        distances.append(frechet_distance(Moments.of(copies), reference))
    found = frechet_deviation(features, reference)
    assert found == pytest.approx(np.std(distances, ddof=1), rel=0.12)


def test_on_one_axis_it_has_a_closed_form() -> None:
    """The distance of N(m, s^2) to N(0, r^2) is m^2 + (s - r)^2."""
    features = np.random.default_rng(2).standard_normal((50, 1)) + 3.0
    reference = Moments(10, np.zeros(1), np.full((1, 1), 4.0 * 9))
    mean, deviation = features.mean(), features.std(ddof=1)
    away = features[:, 0] - mean
    pull = 2 * mean * away + (1 - 2.0 / deviation) * away**2
    expected = pull.std(ddof=1) / 50**0.5
    assert frechet_deviation(features, reference) == pytest.approx(expected, rel=1e-12)


def test_axes_without_variance_change_nothing(reference: Moments) -> None:
    def wider(features: np.ndarray) -> np.ndarray:
        turned, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((12, 12)))
        return np.pad(features, ((0, 0), (0, 4))) @ turned

    real = np.random.default_rng(0).standard_normal((2000, 8))
    found = frechet_deviation(wider(samples(1)), Moments.of(wider(real)))
    assert found == pytest.approx(frechet_deviation(samples(1), reference), rel=1e-6)
    # One that only the real images have.
    real = np.concatenate([real, real[:, :1] ** 2], axis=1)
    flat = np.pad(samples(1), ((0, 0), (0, 1)))
    assert np.isfinite(frechet_deviation(flat, Moments.of(real)))
