"""Matrix products in forms of which XLA makes fast programs on CPUs and TPUs.

    y = x kernel,   d kernel = x^T dy

On CPUs, with two axes each, d kernel is one product. With more, XLA first copies dy,
transposed, and takes up to twice as long.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from multistep_cm.models.platforms import by_platform

TPU_ROWS = 8
"""Of a tile: a product of fewer rows takes as long."""


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x: [.., inputs], kernel: [inputs, features]; returns [.., features]."""
    y = x.reshape(-1, x.shape[-1]) @ _turned_if_high(kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[1])


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x: [.., features] and bias: [features], of one dtype. Reverse mode only.

    On TPUs the gradient of a bias is a product with ones: a sum over rows alone takes
    as long as half of the matrix product beside it.
    """
    return x + bias


def _add_bias_forward(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return add_bias(x, bias), None


def _add_bias_backward(_: None, y_bar: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = y_bar.reshape(-1, y_bar.shape[-1])
    return y_bar, by_platform(
        rows, tpu=sum_by_product, default=lambda rows: rows.sum(0)
    )


def sum_by_product(rows: jax.Array) -> jax.Array:
    """[count, features] to the sum of rows, [features]; in at least float32 inside."""
    ones = jnp.ones((TPU_ROWS, rows.shape[0]), rows.dtype)
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    total = jnp.matmul(ones, rows, preferred_element_type=wide)
    return total[0].astype(rows.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def exact(dtype: DTypeLike) -> jax.lax.Precision:
    """Of products with ones: three passes of bfloat16 hold what was bfloat16, and its
    squares; float32 needs six."""
    is_half = jnp.dtype(dtype) == jnp.bfloat16
    return jax.lax.Precision.HIGH if is_half else jax.lax.Precision.HIGHEST


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x kernel + bias, to be broadcast: factors of a channel for a whole image.

    x: [batch, inputs], kernel: [inputs, features], bias: [features]; returns [batch,
    features]. On CPUs the bias is one more row of the kernel: XLA computes products
    once, but sums anew for every number that they are broadcast to.
    """

    def one_product(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        x = jnp.concatenate([x, jnp.ones_like(x[:, :1])], 1)
        return x @ jnp.concatenate([kernel, bias[None]])

    def default(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        return x @ kernel + bias

    return by_platform(x, kernel, bias, cpu=one_product, default=default)


def _turned_if_high(kernel: jax.Array) -> jax.Array:
    """The kernel; if it is high and narrow, its gradient is computed transposed, in
    two thirds of the time: the barrier keeps XLA from turning the product back."""
    if kernel.shape[0] <= kernel.shape[1]:
        return kernel
    return by_platform(
        kernel,
        cpu=lambda kernel: jax.lax.optimization_barrier(kernel.T).T,
        default=lambda kernel: kernel,
    )
