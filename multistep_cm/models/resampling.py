"""Half and twice the size of an image: means of 2x2 squares, and nearest neighbours.

On TPUs both are products with a matrix of ones and zeros over pairs of rows: else the
compiler moves the columns of a pair apart one by one, for ten times as long.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from multistep_cm.models.platforms import by_platform
from multistep_cm.models.products import exact


def average_pool(x: jax.Array) -> jax.Array:
    """Means of 2x2 squares: [batch, 2h, 2w, c] to [batch, h, w, c]."""

    def default(x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        squares = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        return squares.mean((2, 4))

    return by_platform(x, tpu=average_by_product, default=default)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Every value four times: [batch, h, w, c] to [batch, 2h, 2w, c]."""

    def default(x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        squares = jnp.broadcast_to(
            x[:, :, None, :, None], (batch, height, 2, width, 2, channels)
        )
        return squares.reshape(batch, 2 * height, 2 * width, channels)

    return by_platform(x, tpu=repeat_by_product, default=default)


def average_by_product(x: jax.Array) -> jax.Array:
    """`average_pool` as a product."""
    batch, height, width, channels = x.shape
    rows = x.reshape(batch, height // 2, 2 * width, channels)
    quarters = 0.25 * _membership(width // 2, x.dtype)
    return _product(quarters.T, rows)


def repeat_by_product(x: jax.Array) -> jax.Array:
    """`upsample_nearest` as a product."""
    batch, height, width, channels = x.shape
    rows = _product(_membership(width, x.dtype), x)
    return rows.reshape(batch, 2 * height, 2 * width, channels)


def _membership(width: int, dtype: DTypeLike) -> jax.Array:
    """[4 width, width]: 1 where a value of two rows, one after the other, each twice as
    wide, lies in the square of a column."""
    row = jnp.repeat(jnp.eye(width, dtype=dtype), 2, axis=0)
    return jnp.concatenate([row, row])


def _product(a: jax.Array, x: jax.Array) -> jax.Array:
    """a: [k, w], x: [batch, h, w, c]; returns [batch, h, k, c]. One for each row of
    each image: in one for all, the channels may come out before the columns."""
    each = jnp.broadcast_to(a, (*x.shape[:2], *a.shape))
    return jnp.matmul(each, x, precision=exact(x.dtype))
