"""The paper's formulas, written literally in numpy float64, apart from the package.

Log-SNR arguments broadcast against the images: pass `[batch, 1, ...]` or a scalar.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def logsnr(
    t: npt.ArrayLike,
    low: float = 1.0,
    high: float = 1.0,
    size: float = 1.0,
    logsnr_min: float = -15.0,
    logsnr_max: float = 15.0,
) -> Array:
    """The interpolated shifted cosine schedule; the defaults shift nothing."""
    t = np.asarray(t, np.float64)
    a = np.arctan(np.exp(-logsnr_max / 2))
    b = np.arctan(np.exp(-logsnr_min / 2))
    plain = -2 * np.log(np.tan(a + t * (b - a)))
    shifted_low = plain + 2 * np.log(low / size)
    shifted_high = plain + 2 * np.log(high / size)
    return t * shifted_high + (1 - t) * shifted_low


def alpha(logsnr: npt.ArrayLike) -> Array:
    return np.sqrt(1 / (1 + np.exp(-np.asarray(logsnr, np.float64))))


def sigma(logsnr: npt.ArrayLike) -> Array:
    return np.sqrt(1 / (1 + np.exp(np.asarray(logsnr, np.float64))))


def ddim(x: Array, z_t: Array, logsnr_t: Array, logsnr_s: Array) -> Array:
    """Equation 4."""
    ratio = sigma(logsnr_s) / sigma(logsnr_t)
    return alpha(logsnr_s) * x + ratio * (z_t - alpha(logsnr_t) * x)


def inverse_ddim(z_s: Array, z_t: Array, logsnr_t: Array, logsnr_s: Array) -> Array:
    """Equation 5."""
    ratio = sigma(logsnr_s) / sigma(logsnr_t)
    return (z_s - ratio * z_t) / (alpha(logsnr_s) - alpha(logsnr_t) * ratio)


def addim(
    x_hat: Array, z_t: Array, logsnr_t: Array, logsnr_s: Array, x_var: Array
) -> Array:
    """Algorithm 3; `x_var` broadcasts as the log-SNR does."""
    axes = tuple(range(1, z_t.ndim))
    e_hat = (z_t - alpha(logsnr_t) * x_hat) / sigma(logsnr_t)
    d = z_t[0].size
    ratio = sigma(logsnr_s) / sigma(logsnr_t)
    z_var = (alpha(logsnr_s) - alpha(logsnr_t) * ratio) ** 2 * x_var
    norm = np.sum(e_hat**2, axis=axes, keepdims=True)
    scale = np.sqrt(sigma(logsnr_s) ** 2 + d / norm * z_var)
    return alpha(logsnr_s) * x_hat + scale * e_hat


def huber(r: npt.ArrayLike, epsilon: float) -> Array:
    r = np.asarray(r, np.float64)
    return np.where(r < epsilon, r**2 / (2 * epsilon), r - epsilon / 2)


def rms(difference: Array) -> Array:
    return np.sqrt(np.mean(difference**2, axis=tuple(range(1, difference.ndim))))
