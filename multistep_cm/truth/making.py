"""Make a `Mixture` from weights, means and covariances, with the input checked."""

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from multistep_cm.truth.mixtures import Mixture


def full(
    weights: npt.ArrayLike,
    means: npt.ArrayLike,
    covariances: npt.ArrayLike,
    dtype: str = "float32",
) -> Mixture:
    """A mixture of Gaussians with any covariances.

    Args:
        weights: [K], not negative, of sum 1.
        means: [K, d].
        covariances: [K, d, d], symmetric, positive definite.
        dtype: of the mixture's arrays, `float32` or `float64`.

    Raises:
        ValueError: for a value that does not fit, in one sentence.
    """
    log_weights, mean = _weights_and_means(weights, means)
    covariance = np.asarray(covariances, np.float64)
    count, dimension = mean.shape
    if covariance.shape != (count, dimension, dimension):
        raise ValueError(
            f"covariances have shape {covariance.shape}, expected "
            f"{(count, dimension, dimension)} for means of shape {mean.shape}"
        )
    if not np.allclose(covariance, covariance.swapaxes(1, 2), atol=1e-10):
        raise ValueError("a covariance is not symmetric, expected C = C^T for each")
    variances, bases = np.linalg.eigh(covariance)
    _check_positive("covariance {} has the eigenvalue", variances.min(axis=1))
    # Nothing lies outside a complete basis: any positive number serves.
    return _build(log_weights, mean, bases, variances, variances.mean(axis=1), dtype)


def low_rank(
    weights: npt.ArrayLike,
    means: npt.ArrayLike,
    factors: npt.ArrayLike,
    noise: npt.ArrayLike,
    dtype: str = "float32",
) -> Mixture:
    """A mixture with covariances `factor factor^T + noise I`.

    `factors` [K, d, r] with r <= d; `noise`, a variance, () or [K], positive; the rest
    as in `full`. Raises ValueError for a value that does not fit.
    """
    log_weights, mean = _weights_and_means(weights, means)
    factor = np.asarray(factors, np.float64)
    count, dimension = mean.shape
    fits = factor.ndim == 3 and factor.shape[:2] == mean.shape
    if not fits or factor.shape[2] > dimension:
        raise ValueError(
            f"factors have shape {factor.shape}, expected ({count}, {dimension}, rank) "
            f"with a rank of at most {dimension}"
        )
    noise = np.asarray(noise, np.float64)
    if noise.shape not in ((), (count,)):
        raise ValueError(f"noise has shape {noise.shape}, expected () or ({count},)")
    rest = np.broadcast_to(noise, (count,))
    _check_positive("the noise variance of component {} is", rest)
    bases, lengths, _ = np.linalg.svd(factor, full_matrices=False)
    variances = lengths**2 + rest[:, None]
    return _build(log_weights, mean, bases, variances, rest, dtype)


def isotropic(
    weights: npt.ArrayLike,
    means: npt.ArrayLike,
    deviations: npt.ArrayLike,
    dtype: str = "float32",
) -> Mixture:
    """A mixture with covariances `deviation^2 I`; `deviations` () or [K], positive."""
    count, dimension = np.asarray(means).shape if np.ndim(means) == 2 else (1, 1)
    _check_positive("deviation {} is", np.atleast_1d(np.asarray(deviations)))
    noise = np.asarray(deviations, np.float64) ** 2
    return low_rank(weights, means, np.zeros((count, dimension, 1)), noise, dtype)


def check_dtype(dtype: str) -> None:
    """ValueError unless jax can hold arrays of this dtype now."""
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype is {dtype!r}, expected 'float32' or 'float64'")
    if dtype == "float64" and jnp.result_type(float) != jnp.float64:
        raise ValueError(
            "dtype is 'float64' while float64 is disabled in jax: set JAX_ENABLE_X64=1"
        )


def _weights_and_means(
    weights: npt.ArrayLike, means: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    weight, mean = np.asarray(weights, np.float64), np.asarray(means, np.float64)
    if mean.ndim != 2 or 0 in mean.shape:
        raise ValueError(
            f"means have shape {mean.shape}, expected (components, dimensions)"
        )
    if weight.shape != mean.shape[:1]:
        raise ValueError(
            f"weights have shape {weight.shape}, expected ({len(mean)},) for "
            f"means of shape {mean.shape}"
        )
    if np.any(weight < 0) or not abs(weight.sum() - 1) < 1e-6:
        raise ValueError(
            f"weights have the sum {weight.sum():.6g} and the minimum "
            f"{weight.min():.6g}, expected sum 1 and none below 0"
        )
    with np.errstate(divide="ignore"):
        return np.log(weight), mean


def _check_positive(what: str, values: np.ndarray) -> None:
    # Not `values <= 0`: that would let NaN pass.
    bad = np.flatnonzero(~(values > 0))
    if bad.size:
        raise ValueError(
            f"{what.format(bad[0])} {values[bad[0]]:.6g}, expected a positive number"
        )


def _build(
    log_weights: np.ndarray,
    means: np.ndarray,
    bases: np.ndarray,
    variances: np.ndarray,
    rest: np.ndarray,
    dtype: str,
) -> Mixture:
    check_dtype(dtype)
    arrays = (log_weights, means, bases, variances, rest)
    return Mixture(*(jnp.asarray(array, dtype) for array in arrays))
