"""Loss weights as functions of log-SNR, and the norms of a difference."""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

Weight: TypeAlias = Literal[
    "snr_plus_1", "sqrt_snr_plus_1", "truncated_snr", "uniform", "inverse_gap"
]
Norm: TypeAlias = Literal["example", "element", "squared", "pseudo_huber"]


def loss_weight(
    name: Weight, logsnr: jax.Array, logsnr_s: jax.Array | None = None
) -> jax.Array:
    """w_t [batch], float32.

    `snr_plus_1` is the paper's; on a norm that is not squared, `sqrt_snr_plus_1` is
    the one that measures in v-space. `truncated_snr` is max(SNR, 1), of progressive
    distillation and TRACT. `uniform` is 1, of consistency models (Song et al. 2023).
    `inverse_gap` is 1 / (sigma_t / alpha_t - sigma_s / alpha_s), of improved
    consistency training (Song and Dhariwal 2023), and needs `logsnr_s`, above
    `logsnr`. Raises ValueError for another name, or when `logsnr_s` is missing.
    """
    if name == "snr_plus_1":
        return jnp.exp(logsnr) + 1.0
    if name == "sqrt_snr_plus_1":
        return jnp.sqrt(jnp.exp(logsnr) + 1.0)
    if name == "truncated_snr":
        return jnp.maximum(jnp.exp(logsnr), 1.0)
    if name == "uniform":
        return jnp.ones_like(logsnr)
    if name == "inverse_gap":
        if logsnr_s is None:
            raise ValueError("weight 'inverse_gap' needs logsnr_s, the end of the hop")
        return jnp.exp(0.5 * logsnr) / -jnp.expm1(0.5 * (logsnr - logsnr_s))
    raise ValueError(f"weight is {name!r}, expected one of {get_args(Weight)}")


def mean_square(difference: jax.Array) -> jax.Array:
    """||difference||^2 / d for every example: [batch, ...] -> [batch]."""
    return jnp.mean(jnp.square(difference), axis=tuple(range(1, difference.ndim)))


def difference_norm(difference: jax.Array, epsilon: float, norm: Norm) -> jax.Array:
    """The size of a difference: [batch, ...] -> [batch].

    With r = sqrt(||difference||^2 / d) of each example:

    - `example`: r, rounded off below `epsilon`. Huber's function r^2 / (2 epsilon) for
      r < epsilon, r - epsilon / 2 above, so its slope is 1 far from zero. The paper:
      epsilon 1e-4 on ImageNet, 1 for text-to-image, where it is half the squared norm
      as long as r < 1.
    - `element`: the same of every |difference|, averaged after.
    - `squared`: r^2, of diffusion, progressive distillation and TRACT.
    - `pseudo_huber`: sqrt(r^2 + epsilon^2) - epsilon, of improved consistency training
      (Song and Dhariwal 2023), whose c = 0.00054 sqrt(d) is epsilon = 0.00054
      in units of r.

    Raises ValueError for another norm.
    """
    if norm == "example":
        return _huber_of_square(mean_square(difference), epsilon)
    if norm == "element":
        values = _huber_of_square(jnp.square(difference), epsilon)
        return jnp.mean(values, axis=tuple(range(1, difference.ndim)))
    if norm == "squared":
        return mean_square(difference)
    if norm == "pseudo_huber":
        # sqrt(a + c^2) - c without its cancellation for small a.
        square = mean_square(difference)
        return square / (jnp.sqrt(square + epsilon**2) + epsilon)
    raise ValueError(f"norm is {norm!r}, expected one of {get_args(Norm)}")


def _huber_of_square(square: jax.Array, epsilon: float) -> jax.Array:
    # The root is taken of a value that is never zero: its gradient stays finite.
    root = jnp.sqrt(jnp.maximum(square, epsilon**2))
    return jnp.where(square < epsilon**2, square / (2 * epsilon), root - epsilon / 2)


def multiscale_norm(
    difference: jax.Array, epsilon: float, norm: Norm, num_pools: int
) -> jax.Array:
    """`difference_norm` of an image difference and of its 2x2 average pools, [batch].

    Level j (pooled j times) has weight 2^j, normalised to sum to 1: the 1 / resolution
    of simple diffusion's multiscale loss. `difference` [batch, height, width, channels]
    with sides divisible by 2^num_pools; 0 pools give `difference_norm` itself.
    """
    total = jnp.zeros(difference.shape[0], difference.dtype)
    for level in range(num_pools + 1):
        total += 2.0**level * difference_norm(difference, epsilon, norm)
        if level < num_pools:
            difference = _average_pool(difference)
    return total / (2.0 ** (num_pools + 1) - 1.0)


def _average_pool(images: jax.Array) -> jax.Array:
    batch, height, width, channels = images.shape
    tiles = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return tiles.mean(axis=(2, 4))
