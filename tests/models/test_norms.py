"""Norms against numpy in float64, and their forms for TPUs against those for others."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.models import norms
from multistep_cm.models.products import exact
from tests.models.formulas import draw, filled, group_norm, layer_norm, run


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (4, 1), (6, 1), (8, 2), (48, 12), (64, 16), (128, 32), (2048, 32)],
)
def test_groups_divide_and_hold_four_channels(channels: int, groups: int) -> None:
    assert norms.num_groups(channels) == groups


@pytest.mark.parametrize("kind", [norms.GroupNorm, norms.LayerNorm])
def test_norms_of_bfloat16_are_computed_in_float32(kind: Any) -> None:
    # In bfloat16 the mean of 300 + noise would be off by about 1.
    x = jnp.asarray(300 + 8 * draw(2, 4, 4, 8), jnp.bfloat16)
    params = {"scale": np.ones(8), "bias": np.zeros(8)}
    low = run(kind(dtype=jnp.bfloat16), params, x)
    high = run(kind(dtype=jnp.float32), params, x.astype(jnp.float32))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), high, rtol=2**-8, atol=1e-3)


def test_group_norm_of_a_large_offset_is_the_formula() -> None:
    x = 100 + draw(2, 4, 4, 8)
    module = norms.GroupNorm(jnp.float32)
    params = filled(module, x)
    want = group_norm(params, x, groups=2)
    np.testing.assert_allclose(run(module, params, x), want, atol=5e-3)
    bias = np.broadcast_to(params["bias"], x.shape)
    np.testing.assert_allclose(run(module, params, 0 * x), bias, atol=1e-6)


def test_layer_norm_is_the_formula_and_that_of_flax() -> None:
    x = 3 + draw(2, 3, 3, 8)
    module = norms.LayerNorm(jnp.float32)
    params = filled(module, x)
    got = run(module, params, x)
    np.testing.assert_allclose(got, layer_norm(params, x), atol=1e-5)
    flax = nn.LayerNorm(norms.EPSILON)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, filled(flax, x))
    np.testing.assert_allclose(got, run(flax, params, x), rtol=1e-6, atol=1e-6)


def test_rms_norm_is_the_formula() -> None:
    x, gain = draw(2, 3, 5, 8), draw(1, 8)
    wide = np.float64(x)
    want = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * gain
    got = norms.rms_norm(jnp.asarray(x), jnp.asarray(gain))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


Norm = Callable[[jax.Array, jax.Array], jax.Array]


def both_ways(
    norm: Norm, x: jax.Array, gain: jax.Array, y_bar: jax.Array
) -> tuple[jax.Array, ...]:
    y, transpose = jax.vjp(norm, x, gain)
    return (y, *transpose(y_bar))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rms_norm_by_products_is_the_same_both_ways(dtype: Any) -> None:
    """Against the formula's own gradient, of the same numbers in float32."""
    x, y_bar = (jnp.asarray(draw(2, 3, 5, 8), dtype) for _ in range(2))
    gain = jnp.asarray(1 + 0.3 * draw(1, 8))
    got = both_ways(norms.rms_norm_by_products, x, gain, y_bar)
    assert [part.dtype for part in got] == [dtype, dtype, jnp.float32]
    wide = x.astype(jnp.float32), gain, y_bar.astype(jnp.float32)
    want = both_ways(norms.rms_norm, *wide)
    rounding = 2**-8 if dtype == jnp.bfloat16 else 1e-5
    for mine, theirs in zip(got[:2], want[:2], strict=True):
        np.testing.assert_allclose(
            np.float32(mine), theirs, rtol=rounding, atol=rounding / 4
        )
    np.testing.assert_allclose(got[2], want[2], rtol=1e-5, atol=1e-5)


def test_rms_norm_of_zeros_has_finite_gradients() -> None:
    zeros = jnp.zeros((2, 8))
    parts = both_ways(norms.rms_norm_by_products, zeros, jnp.ones((1, 8)), zeros + 1)
    assert all(bool(jnp.isfinite(part).all()) for part in parts)
    np.testing.assert_array_equal(parts[0], 0)


def test_a_mean_by_a_product_is_the_same_both_ways() -> None:
    x, y_bar = draw(2, 3, 12), draw(2, 3, 1)
    precision = exact(jnp.float32)
    y, transpose = jax.vjp(lambda x: norms.mean_by_product(x, precision), x)
    np.testing.assert_allclose(y, x.mean(-1, keepdims=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(transpose(y_bar)[0], np.repeat(y_bar / 12, 12, -1))
