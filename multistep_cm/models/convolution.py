"""A 3x3 convolution that is fast on CPUs too, forwards and backwards.

On CPUs, large ones are made of matrix products (`winograd.py`). Small ones are XLA's;
but JAX writes their gradients with permuted dimension numbers, which XLA's CPU compiler
puts in order at the top of a program only. In the body of a loop (scanned blocks,
scanned steps, accumulation) they run as naive loops, about thirty times slower. Here
they are written in order from the start. Other platforms get JAX's own form, which
their libraries recognise. Forward and reverse mode both work; second derivatives
through the kernel or the input do not.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, linear_call
from jax.typing import DTypeLike

from multistep_cm.models import winograd
from multistep_cm.models.platforms import by_platform

_LAYOUT = ("NHWC", "HWIO", "NHWC")


@jax.jit
def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    if not winograd.suits(x.shape, kernel.shape[-1], x.dtype):
        return _direct(x, kernel)
    return by_platform(x, kernel, cpu=winograd.convolve, default=_direct)


def _direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT
    )


@jax.jit
def _to_input(kernel: jax.Array, cotangent: jax.Array) -> jax.Array:
    """The transpose of `x -> _convolve(x, kernel)`."""
    shape = (*cotangent.shape[:-1], kernel.shape[2])
    like = jax.ShapeDtypeStruct(shape, cotangent.dtype)

    def ordered(kernel: jax.Array, cotangent: jax.Array) -> jax.Array:
        return _convolve(cotangent, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))

    def default(kernel: jax.Array, cotangent: jax.Array) -> jax.Array:
        transpose = jax.linear_transpose(lambda x: _direct(x, kernel), like)
        return transpose(cotangent)[0]

    return by_platform(kernel, cotangent, cpu=ordered, default=default)


@jax.jit
def _to_kernel(x: jax.Array, cotangent: jax.Array) -> jax.Array:
    """The transpose of `kernel -> _convolve(x, kernel)`."""
    shape = (3, 3, x.shape[-1], cotangent.shape[-1])
    like = jax.ShapeDtypeStruct(shape, cotangent.dtype)

    def ordered(x: jax.Array, cotangent: jax.Array) -> jax.Array:
        if winograd.suits(x.shape, shape[-1], x.dtype):
            return winograd.to_kernel(x, cotangent)
        y = _direct(x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3))
        return y.transpose(1, 2, 0, 3)

    def default(x: jax.Array, cotangent: jax.Array) -> jax.Array:
        transpose = jax.linear_transpose(lambda kernel: _direct(x, kernel), like)
        return transpose(cotangent)[0]

    return by_platform(x, cotangent, cpu=ordered, default=default)


@jax.custom_jvp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cross-correlation with zero padding, of the same size as x.

    x: [batch, height, width, inputs], kernel: [3, 3, inputs, outputs], of one dtype;
    returns [batch, height, width, outputs].
    """
    return _convolve(x, kernel)


def _jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[Any, Any]
) -> tuple[jax.Array, Any]:
    x, kernel = primals
    x_dot, kernel_dot = tangents
    terms = []
    if not isinstance(x_dot, SymbolicZero):
        terms.append(
            linear_call(lambda k, v: _convolve(v, k), _to_input, kernel, x_dot)
        )
    if not isinstance(kernel_dot, SymbolicZero):
        terms.append(linear_call(_convolve, _to_kernel, x, kernel_dot))
    y = convolve(x, kernel)
    return y, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(y)


convolve.defjvp(_jvp, symbolic_zeros=True)


class Conv3x3(nn.Module):
    """A 3x3 convolution with bias that keeps the size."""

    features: int
    dtype: DTypeLike
    zero_init: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, height, width, inputs]; returns [batch, height, width, features]
        in `dtype`."""
        zeros = nn.initializers.zeros
        init = zeros if self.zero_init else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", zeros, (self.features,))
        x, kernel, bias = (part.astype(self.dtype) for part in (x, kernel, bias))
        return convolve(x, kernel) + bias
