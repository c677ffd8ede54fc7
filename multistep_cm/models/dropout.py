"""Dropout whose random numbers cost next to nothing on TPUs.

The counter-based generator of `jax.random` takes longer there than the matrix product
beside it, and so do numbers that are made of it by parts and put together in memory.
Here it draws a seed for each image, and every number is a hash of the seed and its
place: a few operations that are joined to those around, and so are done again in the
backward pass for less than it would cost to keep a mask. Rates are multiples of 1/256,
and what is kept is scaled by the rate that acts.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

LEVELS = 256
"""Of a rate."""


class Dropout(nn.Module):
    """Zeros at a rate, the rest scaled so that the mean stays.

    The rate, in [0, 1), is rounded to a multiple of 1/256.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, ..], floating; returns its shape and dtype. Needs the rng
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
    """Independent numbers, uniform in 0..255, as uint32 of this shape, [batch, ..]."""
    batch, rest = shape[0], shape[1:]
    seeds = jax.random.key_data(jax.random.split(key, batch))
    # Behind a barrier they are drawn once, and not for every number.
    seeds = jax.lax.optimization_barrier(seeds)
    first, second = (
        seeds[:, i].reshape(batch, *(1,) * len(rest)) for i in (0, seeds.shape[1] - 1)
    )
    place = jnp.zeros((1, *rest), jnp.uint32)
    for axis in range(1, len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]))
        place += stride * jax.lax.broadcasted_iota(jnp.uint32, place.shape, axis)
    return _hash(place ^ first, second) >> 24


def _hash(x: jax.Array, seed: jax.Array) -> jax.Array:
    """Every bit of uint32 x changes every bit of the result about half of the time:
    the finaliser of murmur3 with the constants that C. Wellons found by search
    (https://github.com/skeeto/hash-prospector), and a second seed halfway."""
    x ^= x >> 16
    x *= jnp.uint32(0x21F0AAAD)
    x ^= seed
    x ^= x >> 15
    x *= jnp.uint32(0x735A2D97)
    return x ^ x >> 15
