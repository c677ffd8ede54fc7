"""Matrix products in forms of which XLA makes fast programs on CPUs.

    y = x kernel,   d kernel = x^T dy

With two axes each, d kernel is one product. With more, XLA first copies dy, transposed,
and takes up to twice as long.
"""

import jax
import jax.numpy as jnp

from multistep_cm.models.platforms import by_platform


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x: [.., inputs], kernel: [inputs, features]; returns [.., features]."""
    y = x.reshape(-1, x.shape[-1]) @ _turned_if_high(kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[1])


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
