"""Parts that both networks share: embeddings, dense layers, FiLM, attention, blocks.

Parameters are float32. Each module computes in its `dtype`; the time input, the
embeddings, the statistics of norms and the softmax are float32 whatever it is.
Module names are read by the sharding rules: of two matrices in a row, the second is
called `out` or `down`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from multistep_cm.models.attention import attend
from multistep_cm.models.convolution import Conv3x3
from multistep_cm.models.dropout import Dropout
from multistep_cm.models.keeping import KEPT
from multistep_cm.models.norms import GroupNorm, layer_norm, rms_norm
from multistep_cm.models.platforms import by_platform
from multistep_cm.models.products import add_bias, affine, product

TIME_SCALE = 1000.0
TIME_WIDTH = 128
"""Sines and cosines of t; the paper's parameter counts come out with 128."""
GUIDANCE_SCALE = 0.01
"""Scales of guidance, 0 to about 10, on the axis of t."""


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """What a block needs to know of its level and of the network."""

    channels: int
    head_dim: int
    mlp_ratio: int
    dropout: float
    dtype: DTypeLike
    train: bool


class Condition(NamedTuple):
    """What a block is told: a vector for FiLM and, of networks that read captions, a
    sequence to attend to.

    vector: [batch, width]; text: [batch, length, text width]; mask: bool [batch,
    length], True is seen.
    """

    vector: jax.Array
    text: jax.Array | None = None
    mask: jax.Array | None = None


def sinusoidal_embedding(t: jax.Array, width: int) -> jax.Array:
    """Sines, then cosines of 1000 t at width/2 frequencies from 1 down to 1e-4.

    t: [batch] in [0, 1], any dtype; returns float32 [batch, width].
    """
    count = width // 2
    exponents = jnp.arange(count, dtype=jnp.float32) / max(count - 1, 1)
    frequencies = jnp.exp(-math.log(10_000.0) * exponents)
    angles = TIME_SCALE * t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ConditionEmbedding(nn.Module):
    """Time and class as one vector: MLP(sinusoids of t) + row of the class.

    The table has num_classes + 1 rows; the last one means "no class". With
    num_classes = 0 there is no table and no label is read. A vector that is pooled over
    a caption is added by a matrix, and `is_guided` networks, students of guided ones,
    add MLP(sinusoids of w) of the scale of guidance, zero at initialisation.
    """

    width: int
    num_classes: int
    is_guided: bool = False

    @nn.compact
    def __call__(
        self,
        t: jax.Array,
        cond: Mapping[str, jax.Array],
        pooled: jax.Array | None = None,
    ) -> jax.Array:
        """t: [batch], cond["label"]: int32 [batch], cond["guidance"]: float [batch],
        pooled: [batch, any width]; returns float32 [batch, width].

        Without "guidance" an `is_guided` network is the one it was before guidance.
        Raises ValueError when there are classes and cond has no "label".
        """
        x = sinusoidal_embedding(t, TIME_WIDTH)
        # TPUs multiply float32 matrices in bfloat16 unless told otherwise.
        exact = {"dtype": jnp.float32, "precision": jax.lax.Precision.HIGHEST}
        x = nn.swish(nn.Dense(self.width, name="time_in", **exact)(x))
        x = nn.Dense(self.width, name="time_out", **exact)(x)
        if self.num_classes:
            if "label" not in cond:
                raise ValueError(
                    f"the network has {self.num_classes} classes, but cond has no "
                    f'"label"; pass {self.num_classes} for "no class"'
                )
            table = nn.Embed(
                self.num_classes + 1,
                self.width,
                dtype=jnp.float32,
                embedding_init=nn.initializers.normal(1.0),
                name="label",
            )
            x = x + table(cond["label"])
        if pooled is not None:
            x = x + nn.Dense(self.width, name="text", **exact)(pooled)
        if self.is_guided and "guidance" in cond:
            w = sinusoidal_embedding(GUIDANCE_SCALE * cond["guidance"], TIME_WIDTH)
            w = nn.swish(nn.Dense(self.width, name="guidance_in", **exact)(w))
            zeros = nn.initializers.zeros
            last = nn.Dense(self.width, kernel_init=zeros, name="guidance", **exact)
            x = x + last(w)
        return x


def _multiply(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return add_bias(product(x, kernel), bias)


class Dense(nn.Module):
    """A matrix product over the last axis, with bias."""

    features: int
    dtype: DTypeLike
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [.., inputs]; returns [.., features] in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return _multiply(x, kernel, bias)


def dense(features: int, dtype: DTypeLike, name: str, zero_init: bool = False) -> Dense:
    """`Dense`, at first zero or of the usual size."""
    init = nn.initializers.zeros if zero_init else nn.initializers.lecun_normal()
    return Dense(features, dtype, init, name=name)


class StackedDense(nn.Module):
    """`count` matrix products of the same input, with biases.

    The kernel is [inputs, count, features]: cut along the last axis, all are cut alike.
    One product with all of it would leave `count` among the last two axes of the
    result, where TPUs pad it to 8 and copy to take it apart.
    """

    count: int
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """x: [.., inputs]; returns `count` of [.., features]."""
        shape = (x.shape[-1], self.count, self.features)

        def draw(key: jax.Array) -> jax.Array:
            flat = (shape[0], self.count * self.features)
            return nn.initializers.lecun_normal()(key, flat).reshape(shape)

        kernel = self.param("kernel", draw)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if x.ndim == 2:
            return by_platform(x, kernel, bias, tpu=at_once, default=_one_by_one)
        return tuple(_multiply(x, kernel[:, i], bias[i]) for i in range(self.count))


def at_once(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
    """The products of `StackedDense` for few rows as one: then it is the kernel, not
    the result, that TPUs would copy to take it apart, and its gradient to join it."""
    return tuple(jnp.einsum("bi,icf->cbf", x, kernel) + bias[:, None])


def _one_by_one(
    x: jax.Array, kernel: jax.Array, bias: jax.Array
) -> tuple[jax.Array, ...]:
    return tuple(affine(x, kernel[:, i], bias[i]) for i in range(len(bias)))


class FiLM(nn.Module):
    """Scale and shift, linear in the condition, for x (1 + scale) + shift."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, condition: jax.Array) -> tuple[jax.Array, jax.Array]:
        """condition: [batch, width]; returns two of [batch, features]."""
        scale, shift = StackedDense(2, self.features, self.dtype, name="both")(
            condition
        )
        return scale, shift


class SelfAttention(nn.Module):
    """Norm, then attention of every position to all; queries and keys are normed.

    The output projection starts at zero. Returns what is to be added to x.
    """

    head_dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, height, width, channels], channels divisible by head_dim."""
        batch, height, width, channels = x.shape
        h = layer_norm(self.dtype, "norm")(x).reshape(batch, height * width, channels)
        parts = StackedDense(3, channels, self.dtype, name="qkv")(h)
        q, k, v = (
            checkpoint_name(_split_heads(part, self.head_dim), KEPT) for part in parts
        )
        gains = self.param("qk_norm", nn.initializers.ones, (2, 1, self.head_dim))
        # By Cauchy and Schwarz: normed vectors have the length sqrt(head_dim).
        limit = math.sqrt(self.head_dim) * jnp.abs(gains[0] * gains[1]).max()
        h = attend(rms_norm(q, gains[0]), rms_norm(k, gains[1]), v, limit)
        h = h.swapaxes(1, 2).reshape(x.shape)
        return dense(channels, self.dtype, "out", zero_init=True)(h)


def _split_heads(x: jax.Array, head_dim: int) -> jax.Array:
    """[batch, tokens, channels] to [batch, heads, tokens, head_dim]."""
    return x.reshape(*x.shape[:2], -1, head_dim).swapaxes(1, 2)


class CrossAttention(nn.Module):
    """Norm, then attention of every position to a caption; queries and keys are normed.

    The output projection starts at zero. Returns what is to be added to x.
    """

    head_dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array, mask: jax.Array) -> jax.Array:
        """x: [batch, .., channels], text: [batch, length, width], mask: bool [batch,
        length]; what is masked has no effect, and nothing is added where all is."""
        batch, channels = x.shape[0], x.shape[-1]
        heads = (channels // self.head_dim, self.head_dim)
        h = layer_norm(self.dtype, "norm")(x).reshape(batch, -1, channels)
        q = dense(channels, self.dtype, "q")(h).reshape(batch, -1, *heads)
        parts = StackedDense(2, channels, self.dtype, name="kv")(text)
        k, v = (part.reshape(*part.shape[:2], *heads) for part in parts)
        gains = self.param("qk_norm", nn.initializers.ones, (2, 1, self.head_dim))

        h = jax.nn.dot_product_attention(
            rms_norm(q, gains[0]),
            rms_norm(k, gains[1]),
            v,
            mask=mask[:, None, None],
            implementation="xla",
        )
        h = jnp.where(mask.any(-1)[:, None, None, None], h, 0)
        return dense(channels, self.dtype, "out", zero_init=True)(h.reshape(x.shape))


def attend_to_text(
    x: jax.Array, condition: Condition, options: BlockOptions
) -> jax.Array:
    """x, plus attention to the caption if there is one; to be called in a block."""
    if condition.text is None or condition.mask is None:
        return x
    attention = CrossAttention(options.head_dim, options.dtype, name="text_attention")
    return x + attention(x, condition.text, condition.mask)


class ResNetBlock(nn.Module):
    """Norm, swish, convolution; norm, FiLM, swish, dropout, zero-init convolution.

    A skip enters as (norm(x) + norm(skip)) / sqrt(2), as in simple diffusion
    (arXiv 2301.11093).
    """

    options: BlockOptions

    @nn.compact
    def __call__(
        self, x: jax.Array, condition: Condition, skip: jax.Array | None
    ) -> jax.Array:
        """x, skip: [batch, height, width, channels]; returns the same shape."""
        o = self.options
        h = GroupNorm(o.dtype, name="norm_in")(x)
        if skip is not None:
            h = (h + GroupNorm(o.dtype, name="norm_skip")(skip)) * math.sqrt(0.5)
        h = Conv3x3(o.channels, o.dtype, name="conv_in")(nn.swish(h))
        film = FiLM(o.channels, o.dtype, name="film")(condition.vector)
        h = checkpoint_name(h, KEPT)
        h = nn.swish(GroupNorm(o.dtype, name="norm_out")(h, film))
        h = Dropout(o.dropout, deterministic=not o.train)(h)
        return x + Conv3x3(o.channels, o.dtype, zero_init=True, name="out")(h)
