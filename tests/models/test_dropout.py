"""Dropout: its rate, its scale, and that its numbers are as good as independent."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.models.dropout import Dropout, draw_bytes, rounded

SHAPE = (64, 32, 130)


def drop(rate: float, x: jax.Array, seed: int = 0) -> jax.Array:
    rngs = {"dropout": jax.random.key(seed)}
    out: Any = Dropout(rate, deterministic=False).apply({}, x, rngs=rngs)
    return jnp.asarray(out)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.999])
def test_the_share_and_the_mean(rate: float) -> None:
    out = np.asarray(drop(rate, jnp.ones(SHAPE)))
    acts = rounded(rate) / 256
    assert abs(acts - rate) <= 1 / 256
    spread = 5 * np.sqrt(acts * (1 - acts) / out.size)
    assert abs((out == 0).mean() - acts) < spread
    np.testing.assert_allclose(out[out > 0], 1 / (1 - acts), rtol=1e-6)


def test_bytes_are_uniform_and_neighbours_independent() -> None:
    drawn = np.asarray(draw_bytes(jax.random.key(1), SHAPE))
    assert drawn.shape == SHAPE
    counts = np.bincount(drawn.ravel(), minlength=256)
    assert len(counts) == 256
    expected = drawn.size / 256
    # A chi-square of 255 degrees of freedom: 255 +- 5 standard deviations.
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 5 * np.sqrt(510)
    for axis in range(3):
        for apart in (1, 2, 16):
            pair = correlation(np.roll(drawn, apart, axis), drawn)
            assert abs(pair) < 5 / np.sqrt(drawn.size)


def test_bits_are_independent_within_a_number_and_across_images_and_seeds() -> None:
    """By pairs: of the bits of one number, of two images, of two seeds."""
    drawn = np.asarray(draw_bytes(jax.random.key(1), (2, 500, 700)))
    other = np.asarray(draw_bytes(jax.random.key(2), (1, 500, 700)))
    bits = [side >> i & 1 for side in (*drawn, *other) for i in range(8)]
    table = np.corrcoef([bit.ravel() for bit in bits])
    assert np.abs(table - np.eye(len(bits))).max() < 5 / np.sqrt(drawn[0].size)


def test_masks_of_many_seeds_differ_as_often_as_chance_says() -> None:
    """The distance of two masks is binomial: near seeds and places show no structure.

    Its variance over pairs, too: a generator that reuses masks has too large a one.
    """
    keys = jax.random.split(jax.random.key(3), 64)
    masks = np.stack([draw_bytes(key, (16, 1000)) for key in keys]) < 64
    flat = masks.reshape(-1, 1000).astype(np.float64)
    flat = flat - 0.25
    table = flat @ flat.T / (1000 * 0.25 * 0.75)
    pairs = table[np.triu_indices(len(flat), 1)]
    assert abs(pairs.mean()) < 5 / np.sqrt(pairs.size * 1000)
    assert abs(pairs.var() * 1000 - 1) < 0.05


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_without_training_or_rate_there_is_none() -> None:
    x = jnp.arange(8.0)
    for layer in (Dropout(0.5, deterministic=True), Dropout(0.0, deterministic=False)):
        np.testing.assert_array_equal(layer.apply({}, x), x)


def test_the_dtype_stays_and_seeds_differ() -> None:
    x = jnp.ones((8, 64), jnp.bfloat16)
    one, other = drop(0.5, x, 0), drop(0.5, x, 1)
    assert one.dtype == jnp.bfloat16
    assert (one != other).any() and (one == drop(0.5, x, 0)).all()
