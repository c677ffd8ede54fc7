"""Dropout: its rate, its scale, and that channels are decided over one by one."""

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
    # Channels that share a random number stand 33 apart.
    for apart in (1, 33, 66, 99):
        pair = np.corrcoef(drawn[..., apart:].ravel(), drawn[..., :-apart].ravel())
        assert abs(pair[0, 1]) < 5 / np.sqrt(drawn.size / 2)


def test_without_training_or_rate_there_is_none() -> None:
    x = jnp.arange(8.0)
    for layer in (Dropout(0.5, deterministic=True), Dropout(0.0, deterministic=False)):
        np.testing.assert_array_equal(layer.apply({}, x), x)


def test_the_dtype_stays_and_seeds_differ() -> None:
    x = jnp.ones((8, 64), jnp.bfloat16)
    one, other = drop(0.5, x, 0), drop(0.5, x, 1)
    assert one.dtype == jnp.bfloat16
    assert (one != other).any() and (one == drop(0.5, x, 0)).all()
