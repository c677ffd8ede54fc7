"""Captions for a network: encoders behind one interface, and attention to them.

An encoder takes what `cond` holds of a caption, `text` and `text_mask`, to a sequence
of vectors with a mask. `TextEmbedding` puts a learned first vector in front of it that
is never masked: it stands for "no caption" when all else is masked, so that every
softmax over a caption has at least one term.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from multistep_cm.models import layers
from multistep_cm.models.level import Level, Ready
from multistep_cm.models.norms import layer_norm

TextKind: TypeAlias = Literal["none", "bytes", "precomputed"]

STRIDE = 4
"""Bytes that become one vector of the sequence, as in CANINE (arXiv 2103.06874)."""

WINDOW = 5
"""Bytes that the first convolution sees at once: about a word."""

POSITION_SCALE = 0.02


class Text(NamedTuple):
    """What blocks attend to, and what goes into FiLM.

    sequence: [batch, length, width]; mask: bool [batch, length], True is seen;
    pooled: float32 [batch, width].
    """

    sequence: jax.Array
    mask: jax.Array
    pooled: jax.Array


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """How captions are read.

    Attributes:
        kind: `bytes` of UTF-8 or `precomputed` embeddings; `none`: not at all.
        width: of the encoder's vectors.
        blocks: transformer blocks over bytes; precomputed embeddings need none.
        head_dim: of their attention.
    """

    kind: TextKind = "none"
    width: int = 128
    blocks: int = 2
    head_dim: int = 32


class TextBlock(nn.Module):
    """x += attention within the caption; x += MLP."""

    width: int
    head_dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, skip: None) -> jax.Array:
        """x: [batch, length, width], mask: [batch, length]; returns x's shape."""
        attention = layers.CrossAttention(self.head_dim, self.dtype, name="attention")
        x = x + attention(x, layer_norm(self.dtype, "norm_keys")(x), mask)
        h = layer_norm(self.dtype, "norm_mlp")(x)
        h = nn.swish(layers.dense(4 * self.width, self.dtype, "up")(h))
        return x + layers.dense(self.width, self.dtype, "down", zero_init=True)(h)


class ByteEncoder(nn.Module):
    """A transformer over UTF-8 bytes, four of which share one of its positions."""

    options: TextOptions
    dtype: DTypeLike
    remat: str
    scan: bool
    ready: Ready | None

    @nn.compact
    def __call__(self, text: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """text: integers 0..255 [batch, length], mask: bool [batch, length], length a
        multiple of 4; returns a quarter of the length."""
        o = self.options
        batch, length = text.shape
        init = nn.initializers.normal(1.0)
        x = nn.Embed(256, o.width, dtype=self.dtype, embedding_init=init, name="byte")(
            text.astype(jnp.int32)
        )
        x = jnp.where(mask[..., None], x, 0).astype(self.dtype)
        # Every byte with its neighbours, as one matrix product.
        around = WINDOW // 2
        padded = jnp.pad(x, ((0, 0), (around, around), (0, 0)))
        windows = [padded[:, i : i + length] for i in range(WINDOW)]
        x = layers.dense(o.width, self.dtype, "window")(jnp.concatenate(windows, -1))
        x = nn.swish(x).reshape(batch, length // STRIDE, STRIDE * o.width)
        x = layers.dense(o.width, self.dtype, "gather")(x)
        mask = mask.reshape(batch, length // STRIDE, STRIDE).any(-1)
        init = nn.initializers.normal(POSITION_SCALE)
        x = x + self.param("position", init, x.shape[1:]).astype(self.dtype)

        def make_block(name: str) -> nn.Module:
            return TextBlock(o.width, o.head_dim, self.dtype, name=name)

        level = Level(
            make_block,
            o.blocks,
            "middle",
            self.remat,
            self.scan,
            self.ready,
            name="transformer",
        )
        return level(x, mask)[0], mask


class PrecomputedEncoder(nn.Module):
    """Embeddings that were made offline, brought to the width by one matrix."""

    options: TextOptions
    dtype: DTypeLike
    remat: str
    scan: bool
    ready: Ready | None

    @nn.compact
    def __call__(self, text: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """text: floats [batch, length, any width], mask: bool [batch, length]."""
        x = layer_norm(self.dtype, "norm_in")(text)
        return layers.dense(self.options.width, self.dtype, "project")(x), mask


ENCODERS: Mapping[str, Callable[..., nn.Module]] = {
    "bytes": ByteEncoder,
    "precomputed": PrecomputedEncoder,
}


class TextEmbedding(nn.Module):
    """A caption as a sequence to attend to and one vector for FiLM."""

    options: TextOptions
    dtype: DTypeLike
    remat: str
    scan: bool
    ready: Ready | None = None

    @nn.compact
    def __call__(self, cond: Mapping[str, jax.Array]) -> Text:
        """cond: "text" as the encoder wants it, "text_mask" bool [batch, length], all
        False for "no caption". Raises ValueError when one of them is missing."""
        for key in ("text", "text_mask"):
            if key not in cond:
                raise ValueError(
                    f'the network reads captions, but cond has no "{key}"; pass a '
                    'text_mask of False for "no caption"'
                )
        o = self.options
        encoder = ENCODERS[o.kind](
            o, self.dtype, self.remat, self.scan, self.ready, name="encoder"
        )
        sequence, mask = encoder(cond["text"], cond["text_mask"])
        first = self.param("first", nn.initializers.normal(1.0), (o.width,))
        first = jnp.broadcast_to(first, (sequence.shape[0], 1, o.width))
        sequence = jnp.concatenate([first.astype(sequence.dtype), sequence], axis=1)
        mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        sequence = layer_norm(self.dtype, "norm_out")(sequence)
        seen = jnp.where(mask[..., None], sequence.astype(jnp.float32), 0.0)
        pooled = seen.sum(1) / mask.sum(1, dtype=jnp.float32)[:, None]
        return Text(sequence, mask, pooled)
