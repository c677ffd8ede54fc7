"""Norms, and the sums over channels that they are made of; float32 inside.

On TPUs a sum over the last axis, that of a register's lanes, takes several times as
long as reading what is summed. A product with ones takes no longer, in three passes of
bfloat16 as exact as float32 for what comes in bfloat16.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from multistep_cm.models.keeping import KEPT
from multistep_cm.models.platforms import by_platform
from multistep_cm.models.products import exact

EPSILON = 1e-6
TPU_LANES = 128
"""Of a register: a product of fewer columns takes as long."""


def num_groups(channels: int) -> int:
    """Groups of a group norm: at most 32, and at least 4 channels in each."""
    most = max(1, min(32, channels // 4))
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


def _mean_of_groups(x: jax.Array, groups: int) -> jax.Array:
    """[batch, channels] to [batch, groups].

    On CPUs as a matrix product, and so `_to_channels`: else XLA computes the norm's
    factors anew for every number of an image, with divisions to find the group.
    """

    def product(x: jax.Array) -> jax.Array:
        membership = _membership(x.shape[1], groups, x.dtype)
        return x @ membership.T * (groups / x.shape[1])

    def default(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], groups, -1).mean(-1)

    return by_platform(x, cpu=product, default=default)


def _to_channels(x: jax.Array, gain: jax.Array) -> jax.Array:
    """[batch, groups] for each channel of its group, times gain [channels]."""

    def product(x: jax.Array, gain: jax.Array) -> jax.Array:
        return x @ (_membership(gain.size, x.shape[1], x.dtype) * gain)

    def default(x: jax.Array, gain: jax.Array) -> jax.Array:
        y = x[:, :, None] * gain.reshape(1, x.shape[1], -1)
        return y.reshape(x.shape[0], -1)

    return by_platform(x, gain, cpu=product, default=default)


def _membership(channels: int, groups: int, dtype: DTypeLike) -> jax.Array:
    """[groups, channels]: 1 where a channel is of a group."""
    return jnp.repeat(jnp.eye(groups, dtype=dtype), channels // groups, axis=1)


class GroupNorm(nn.Module):
    """A norm over space and groups of channels; float32 inside.

    Scale, bias and, when given, FiLM are joined to one affine map a channel, so that
    the image is read once for its statistics and once for the result.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: jax.Array, film: tuple[jax.Array, jax.Array] | None = None
    ) -> jax.Array:
        """x: [batch, height, width, channels], film: (scale, shift), each
        [batch, channels]; returns FiLM of the norm of x, in `dtype`."""
        channels = x.shape[-1]
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        gain = self.param("scale", ones, (channels,))
        offset = self.param("bias", zeros, (channels,))
        y = _group_norm(x.astype(jnp.float32), gain, offset, film)
        return y.astype(self.dtype)


@jax.jit
def _group_norm(
    x: jax.Array,
    gain: jax.Array,
    offset: jax.Array,
    film: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
    """The norm of x, float32, as `GroupNorm` says; gain, offset: [channels]."""
    groups = num_groups(x.shape[-1])
    # Of what is computed again backwards, the sums are not: they are few numbers.
    mean = checkpoint_name(x.mean((1, 2)), KEPT)
    square = checkpoint_name((x * x).mean((1, 2)), KEPT)
    mean, square = _mean_of_groups(mean, groups), _mean_of_groups(square, groups)
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0.0) + EPSILON)
    # The mean is taken off in units of the result: both are linear in the gain.
    offset = offset - _to_channels(mean * inverse, gain)
    gain = _to_channels(inverse, gain)
    if film is not None:
        scale, shift = (part.astype(jnp.float32) for part in film)
        gain, offset = gain * (1 + scale), offset * (1 + scale) + shift
    return x * gain[:, None, None] + offset[:, None, None]


class LayerNorm(nn.Module):
    """A norm over the channels of each position.

    On CPUs and GPUs the numbers are those of `flax.linen.LayerNorm`.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [.., channels]; returns the norm of x in `dtype`."""
        channels = x.shape[-1]
        gain = self.param("scale", nn.initializers.ones, (channels,))
        offset = self.param("bias", nn.initializers.zeros, (channels,))
        wide, precision = x.astype(jnp.float32), exact(x.dtype)
        mean = _mean(wide, precision)
        square = _mean(wide * wide, precision)
        inverse = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0.0) + EPSILON)
        return ((wide - mean) * (inverse * gain) + offset).astype(self.dtype)


def layer_norm(dtype: DTypeLike, name: str) -> LayerNorm:
    """`LayerNorm`, by name."""
    return LayerNorm(dtype, name=name)


def rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    """Each vector of the last axis over its root mean square, times gain [1, width];
    returned in the dtype of x. On TPUs reverse mode only."""

    def default(x: jax.Array, gain: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + EPSILON) * gain
        return wide.astype(x.dtype)

    return by_platform(x, gain, tpu=rms_norm_by_products, default=default)


@jax.custom_vjp
def rms_norm_by_products(x: jax.Array, gain: jax.Array) -> jax.Array:
    """`rms_norm` with sums by products, which leave them in every lane.

    The barriers, here and backwards, keep the compiler from writing x to memory in
    float32 for its two readers.
    """
    unit, _ = _unit(x)
    return (unit * gain).astype(x.dtype)


def _unit(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """n = x r and r = 1 / sqrt(mean(x^2)), both float32 in the shape of x."""
    wide = jax.lax.optimization_barrier(x).astype(jnp.float32)
    width = x.shape[-1]
    square = _sums(wide * wide, width, exact(x.dtype)) / width
    inverse = jax.lax.rsqrt(square + EPSILON)
    return wide * inverse, inverse


def _rms_norm_forward(
    x: jax.Array, gain: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return rms_norm_by_products(x, gain), (x, gain)


def _rms_norm_backward(
    kept: tuple[jax.Array, jax.Array], y_bar: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """With u = gain y_bar:  x_bar = r (u - n mean(u n)),  gain_bar = sum(y_bar n)."""
    x, gain = kept
    x, y_bar = jax.lax.optimization_barrier((x, y_bar))
    unit, inverse = _unit(x)
    y_bar = y_bar.astype(jnp.float32)
    scaled, width = gain * y_bar, x.shape[-1]
    along = _sums(scaled * unit, width, exact(x.dtype)) / width
    x_bar = inverse * (scaled - unit * along)
    gain_bar = (y_bar * unit).sum(range(x.ndim - 1))
    return x_bar.astype(x.dtype), gain_bar.reshape(gain.shape)


rms_norm_by_products.defvjp(_rms_norm_forward, _rms_norm_backward)


def _mean(x: jax.Array, precision: jax.lax.Precision) -> jax.Array:
    """Over the last axis, which stays: float32 [.., 1]."""
    return by_platform(
        x,
        tpu=lambda x: mean_by_product(x, precision),
        default=lambda x: x.mean(-1, keepdims=True),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def mean_by_product(x: jax.Array, precision: jax.lax.Precision) -> jax.Array:
    """The mean over the last axis, which stays; reverse mode only."""
    return _sums(x, TPU_LANES, precision)[..., :1] / x.shape[-1]


def _mean_forward(
    x: jax.Array, precision: jax.lax.Precision
) -> tuple[jax.Array, jax.Array]:
    return mean_by_product(x, precision), x


def _mean_backward(
    _: jax.lax.Precision, x: jax.Array, y_bar: jax.Array
) -> tuple[jax.Array]:
    return (jnp.broadcast_to(y_bar / x.shape[-1], x.shape),)


mean_by_product.defvjp(_mean_forward, _mean_backward)


def _sums(x: jax.Array, copies: int, precision: jax.lax.Precision) -> jax.Array:
    """Sums of float32 x over the last axis, `copies` times: [.., copies]."""
    ones = jnp.ones((x.shape[-1], copies), x.dtype)
    return jnp.matmul(x, ones, precision=precision)
