"""Dropout whose random numbers cost a quarter of the usual.

A number of 32 bits decides over four channels, 8 bits each: on TPUs the counter-based
generator of `jax.random` otherwise takes longer than the matrix product beside it. So
rates are multiples of 1/256, and what is kept is scaled by the rate that acts.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

LEVELS = 256
"""Of a rate."""

SHARED = 4
"""Channels that one random number decides over."""


class Dropout(nn.Module):
    """Zeros at a rate, the rest scaled so that the mean stays.

    The rate, in [0, 1), is rounded to a multiple of 1/256.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [.., channels], floating; returns its shape and dtype. Needs the rng
        "dropout" unless it is deterministic or has a rate of 0."""
        cut = rounded(self.rate)
        if self.deterministic or not cut:
            return x
        keep = draw_bytes(self.make_rng("dropout"), x.shape) >= cut
        scale = jnp.asarray(LEVELS / (LEVELS - cut), x.dtype)
        return jnp.where(keep, x * scale, jnp.zeros((), x.dtype))


def rounded(rate: float) -> int:
    """The rate in units of 1/256, at most 255."""
    return min(round(rate * LEVELS), LEVELS - 1)


def draw_bytes(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Independent numbers, uniform in 0..255, as uint32 [.., channels]."""
    *rest, channels = shape
    numbers = jax.random.bits(key, (*rest, -(-channels // SHARED)), jnp.uint32)
    parts = [numbers >> (8 * j) & (LEVELS - 1) for j in range(SHARED)]
    return jnp.concatenate(parts, -1)[..., :channels]
