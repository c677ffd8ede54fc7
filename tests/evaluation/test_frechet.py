"""The Fréchet distance against closed forms and against scipy's matrix root."""

import numpy as np
import pytest
import scipy.linalg

from multistep_cm.errors import UserError
from multistep_cm.evaluation.frechet import Moments, RunningMoments, frechet_distance


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int = 10**6) -> Moments:
    return Moments(count, mean, covariance * (count - 1))


def random_covariance(rng: np.random.Generator, dimension: int) -> np.ndarray:
    factor = rng.standard_normal((dimension, dimension))
    return factor @ factor.T + 0.1 * np.eye(dimension)


def test_moments_are_those_of_numpy() -> None:
    features = np.random.default_rng(0).standard_normal((50, 4)) * 3 + 7
    moments = Moments.of(features)
    assert moments.count == 50
    np.testing.assert_allclose(moments.mean, features.mean(axis=0), rtol=1e-14)
    covariance = np.cov(features, rowvar=False)
    np.testing.assert_allclose(moments.covariance, covariance, rtol=1e-12)


def test_diagonal_gaussians_have_a_closed_form() -> None:
    rng = np.random.default_rng(1)
    means = rng.standard_normal((2, 6))
    deviations = rng.uniform(0.1, 3.0, (2, 6))
    a, b = (gaussian(m, np.diag(s**2)) for m, s in zip(means, deviations, strict=True))
    expected = np.sum((means[0] - means[1]) ** 2)
    expected += np.sum((deviations[0] - deviations[1]) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_agrees_with_the_matrix_root_of_scipy() -> None:
    rng = np.random.default_rng(2)
    means = rng.standard_normal((2, 12))
    first, second = random_covariance(rng, 12), random_covariance(rng, 12)
    root = np.real(scipy.linalg.sqrtm(first @ second))
    expected = np.sum((means[0] - means[1]) ** 2)
    expected += np.trace(first + second - 2 * root)
    a, b = gaussian(means[0], first), gaussian(means[1], second)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_keep_full_precision() -> None:
    # Rank 3 in 20 dimensions; a shift along an empty direction.
    features = np.zeros((100, 20))
    features[:, :3] = np.random.default_rng(3).standard_normal((100, 3))
    shifted = features.copy()
    shifted[:, 10] = 1e-6
    a = Moments.of(features)
    assert frechet_distance(a, a) < 1e-13
    assert frechet_distance(a, Moments.of(shifted)) == pytest.approx(1e-12, abs=2e-13)


def test_merging_equals_one_pass_in_any_order() -> None:
    rng = np.random.default_rng(4)
    # A mean that is large beside the spread shows a loss of digits.
    features = rng.standard_normal((90, 5)) + 1e4
    whole = Moments.of(features)
    a, b, c = (Moments.of(part) for part in np.split(features, [7, 40]))
    for merged in (a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(a).merge(b)):
        assert merged.count == 90
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14)
        np.testing.assert_allclose(merged.scatter, whole.scatter, atol=1e-8)


def test_running_moments_are_those_of_all() -> None:
    features = np.random.default_rng(4).standard_normal((90, 5)) + 1e4
    whole = Moments.of(features)
    running = RunningMoments(block=8)
    for part in np.split(features, [3, 3, 4, 40, 41, 70]):
        running.add(part)
    running.merge(Moments.of(features[:10]))
    merged = running.moments(5)
    expected = whole.merge(Moments.of(features[:10]))
    assert merged.count == 100
    np.testing.assert_allclose(merged.mean, expected.mean, rtol=1e-14)
    np.testing.assert_allclose(merged.scatter, expected.scatter, atol=1e-8)
    none = RunningMoments().moments(3)
    assert (none.count, none.mean.shape, none.scatter.shape) == (0, (3,), (3, 3))


def test_statistics_give_back_the_moments() -> None:
    moments = Moments.of(np.random.default_rng(6).standard_normal((30, 4)))
    again = Moments.of_statistics(moments.mean, moments.covariance, 30)
    np.testing.assert_allclose(again.scatter, moments.scatter, rtol=1e-14)
    np.testing.assert_allclose(again.root @ again.root, moments.covariance, atol=1e-14)


def test_float32_features_are_summed_in_float64() -> None:
    values = np.full((3000, 1), 16777217 / 2**24, np.float32) + np.float32(1e4)
    values[::2] += np.float32(0.5)
    expected = np.var(values.astype(np.float64), ddof=1)
    assert Moments.of(values).covariance[0, 0] == pytest.approx(expected, rel=1e-10)


def test_too_few_samples_name_the_number_needed() -> None:
    rng = np.random.default_rng(5)
    enough = Moments.of(rng.standard_normal((9, 8)))
    few = Moments.of(rng.standard_normal((8, 8)))
    assert frechet_distance(enough, enough) >= 0
    with pytest.raises(UserError, match="more than 8 samples; there are 8"):
        frechet_distance(enough, few)
    with pytest.raises(UserError, match="at least 2"):
        _ = Moments.of(np.ones((1, 2))).covariance


def test_wrong_features_are_refused() -> None:
    a, b = Moments.of(np.ones((5, 2))), Moments.of(np.ones((5, 3)))
    with pytest.raises(ValueError, match="2 and of 3 dimensions"):
        frechet_distance(a, b)
    with pytest.raises(ValueError, match="2 and of 3 dimensions"):
        a.merge(b)
    with pytest.raises(ValueError, match="count, dimension"):
        Moments.of(np.ones((0, 3)))
    with pytest.raises(ValueError, match="NaN"):
        Moments.of(np.array([[1.0, np.nan]]))
