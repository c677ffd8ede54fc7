"""Pooling and upsampling against numpy, and their forms for TPUs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.models import resampling
from tests.models.formulas import draw


def test_pool_averages_squares_and_upsample_repeats() -> None:
    x = draw(2, 4, 6, 3)
    corners = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    pooled = resampling.average_pool(jnp.asarray(x))
    np.testing.assert_allclose(pooled, sum(corners) / 4, atol=1e-6)
    up = resampling.upsample_nearest(jnp.asarray(x))
    np.testing.assert_array_equal(up, x.repeat(2, axis=1).repeat(2, axis=2))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("usual", "by_product", "sizes"),
    [
        (resampling.average_pool, resampling.average_by_product, ((4, 6), (2, 3))),
        (resampling.upsample_nearest, resampling.repeat_by_product, ((2, 3), (4, 6))),
    ],
)
def test_products_are_the_same_both_ways(
    usual: Callable[..., Any], by_product: Callable[..., Any], sizes: Any, dtype: Any
) -> None:
    """Against the usual form of the same numbers in float32."""
    x, y_bar = (jnp.asarray(draw(2, *size, 3), dtype) for size in sizes)
    y, transpose = jax.vjp(by_product, x)
    want, want_transpose = jax.vjp(usual, x.astype(jnp.float32))
    got = (y, *transpose(y_bar))
    assert [part.dtype for part in got] == [dtype, dtype]
    rounding = 2**-8 if dtype == jnp.bfloat16 else 1e-6
    for mine, theirs in zip(
        got, (want, *want_transpose(y_bar.astype(jnp.float32))), strict=True
    ):
        np.testing.assert_allclose(np.float32(mine), theirs, rtol=rounding, atol=1e-6)
