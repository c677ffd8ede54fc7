"""The presets are what they say."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from multistep_cm.truth import mixtures, presets


@pytest.mark.parametrize(
    ("name", "dimension"),
    [("two_normals", 1), ("ring", 2), ("low_rank_64", 64), ("digits", 64)],
)
def test_dimension_draws_and_density(name: str, dimension: int) -> None:
    mixture = presets.PRESETS[name]("float32")
    assert mixture.dimension == dimension
    x = jax.jit(mixtures.draw, static_argnums=2)(mixture, jax.random.key(0), 1000)
    assert x.shape == (1000, dimension) and x.dtype == np.float32
    mean, covariance = jax.jit(mixtures.moments)(mixture)
    error = 5 * np.sqrt(np.diag(covariance) / 1000) + 1e-6
    assert np.all(np.abs(np.mean(x, axis=0) - mean) < error)
    assert np.all(np.isfinite(jax.jit(mixtures.log_density)(mixture, x)))


def test_every_preset_is_tested() -> None:
    assert set(presets.PRESETS) == {"two_normals", "ring", "low_rank_64", "digits"}


def test_digits_have_the_moments_of_the_digits() -> None:
    """An EM fit keeps the mean, and the covariance up to its regularisation."""
    images = load_digits().data / 8.0 - 1.0
    mean, covariance = jax.jit(mixtures.moments)(presets.digits())
    np.testing.assert_allclose(mean, images.mean(axis=0), atol=1e-4)
    expected = np.cov(images.T, bias=True) + 1e-3 * np.eye(64)
    np.testing.assert_allclose(covariance, expected, atol=1e-3)


def test_ring_modes() -> None:
    x = np.asarray(mixtures.draw(presets.ring(), jax.random.key(1), 1000))
    nearest = np.rint(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)).astype(int) % 8
    assert np.bincount(nearest, minlength=8).min() > 80
    assert abs(np.linalg.norm(x, axis=1).mean() - 1.005) < 0.02
