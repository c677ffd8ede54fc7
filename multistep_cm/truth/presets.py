"""Distributions to test on, from one dimension to the embedded digits."""

from collections.abc import Callable, Mapping

import numpy as np
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture

from multistep_cm.truth import making
from multistep_cm.truth.mixtures import Mixture


def two_normals(dtype: str = "float32") -> Mixture:
    """Two narrow normals in 1-D, as in the paper's figure 1."""
    return making.isotropic([0.5, 0.5], [[-1.0], [1.0]], 0.1, dtype)


def ring(dtype: str = "float32") -> Mixture:
    """Eight round modes on a circle of radius 1 in 2-D."""
    angles = 2 * np.pi * np.arange(8) / 8
    means = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return making.isotropic(np.full(8, 1 / 8), means, 0.1, dtype)


def low_rank_64(dtype: str = "float32") -> Mixture:
    """Ten flat components in 64-D: rank 6 and little noise, like images."""
    random = np.random.default_rng(0)
    means = 0.4 * random.normal(size=(10, 64))
    factors = 0.3 * random.normal(size=(10, 64, 6))
    return making.low_rank(np.full(10, 0.1), means, factors, 0.05**2, dtype)


def digits(dtype: str = "float32") -> Mixture:
    """Ten full Gaussians fitted to scikit-learn's 8x8 digits in [-1, 1], 64-D."""
    images = load_digits().data / 8.0 - 1.0
    fit = GaussianMixture(10, reg_covar=1e-3, random_state=0).fit(images)
    return making.full(fit.weights_, fit.means_, fit.covariances_, dtype)


PRESETS: Mapping[str, Callable[[str], Mixture]] = {
    "two_normals": two_normals,
    "ring": ring,
    "low_rank_64": low_rank_64,
    "digits": digits,
}
