"""What a network may predict (v, x or eps), and how each gives x_hat.

With `z_t = alpha_t x + sigma_t eps` and `v = alpha_t eps - sigma_t x`:
`x = alpha_t z_t - sigma_t v = (z_t - sigma_t eps) / alpha_t`. The paper predicts v.
"""

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from multistep_cm.diffusion.schedules import alpha_of, sigma_of

Conditioning: TypeAlias = Mapping[str, jax.Array]
"""Arrays with a leading batch axis, such as `{"label": int32[batch]}`; may be empty."""

Denoiser: TypeAlias = Callable[[jax.Array, jax.Array, Conditioning], jax.Array]
"""`(z_t [batch, ...], t [batch], cond) -> x_hat [batch, ...]`.

A network with its parameters is one; the exact posterior mean is another."""

Prediction: TypeAlias = Literal["v", "x", "eps"]


def per_example(value: ArrayLike, like: jax.Array) -> jax.Array:
    """A scalar or [batch] value, shaped to broadcast against `like` [batch, ...]."""
    value = jnp.asarray(value)
    return value.reshape(value.shape + (1,) * (like.ndim - 1)) if value.ndim else value


def add_noise(x: jax.Array, eps: jax.Array, logsnr: ArrayLike) -> jax.Array:
    """z_t = alpha_t x + sigma_t eps for x, eps [batch, ...], `logsnr` () or [batch]."""
    alpha = per_example(alpha_of(logsnr), x)
    sigma = per_example(sigma_of(logsnr), x)
    return (alpha * x + sigma * eps).astype(x.dtype)


def to_x(
    prediction: jax.Array, z_t: jax.Array, logsnr: ArrayLike, kind: Prediction
) -> jax.Array:
    """x_hat [batch, ...] from a network's prediction of the given kind.

    Raises ValueError for an unknown kind.
    """
    alpha = per_example(alpha_of(logsnr), z_t)
    sigma = per_example(sigma_of(logsnr), z_t)
    if kind == "v":
        return (alpha * z_t - sigma * prediction).astype(z_t.dtype)
    if kind == "x":
        return prediction.astype(z_t.dtype)
    if kind == "eps":
        return ((z_t - sigma * prediction) / alpha).astype(z_t.dtype)
    raise ValueError(f"prediction kind is {kind!r}, expected 'v', 'x' or 'eps'")


def from_x(
    x: jax.Array, z_t: jax.Array, logsnr: ArrayLike, kind: Prediction
) -> jax.Array:
    """What a network of the given kind would predict so that x_hat = x."""
    alpha = per_example(alpha_of(logsnr), z_t)
    sigma = per_example(sigma_of(logsnr), z_t)
    if kind == "v":
        return ((alpha * z_t - x) / sigma).astype(z_t.dtype)
    if kind == "x":
        return x.astype(z_t.dtype)
    if kind == "eps":
        return ((z_t - alpha * x) / sigma).astype(z_t.dtype)
    raise ValueError(f"prediction kind is {kind!r}, expected 'v', 'x' or 'eps'")
