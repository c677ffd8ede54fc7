"""The shape that UNet and U-ViT share: levels down, a middle, levels up with skips.

Level i works at 1/2**i of the image's size with channels[i] channels. Going down, every
block leaves a skip; going up, the block with the same index takes it. The last level
is the middle and has no skips. Levels are joined by a 2x2 average pool down and nearest
neighbours up, with a matrix for the change of channels at the smaller size.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from multistep_cm.models import layers
from multistep_cm.models.convolution import Conv3x3
from multistep_cm.models.level import Direction, Level, Ready
from multistep_cm.models.norms import GroupNorm
from multistep_cm.models.resampling import average_pool, upsample_nearest
from multistep_cm.models.text import TextEmbedding, TextOptions


class Trunk(nn.Module):
    """A network from (z_t, t, cond) to a prediction in the shape of z_t.

    `attention_block` is the block of the levels whose feature maps have a size in
    `attention_resolutions`; the others have ResNet blocks. `dropout_resolutions` limits
    dropout to such sizes; empty means everywhere. Levels of the sizes in
    `unrolled_resolutions` are scanned without a loop.
    """

    attention_block: Callable[..., nn.Module]
    position_embedding: bool
    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    attention_resolutions: tuple[int, ...]
    head_dim: int
    mlp_ratio: int
    condition_width: int
    dropout: float
    dropout_resolutions: tuple[int, ...]
    unrolled_resolutions: tuple[int, ...]
    dtype: DTypeLike
    remat: str
    scan_blocks: bool
    image_channels: int
    num_classes: int
    text: TextOptions = TextOptions()
    is_guided: bool = False
    ready: Ready | None = None

    @nn.compact
    def __call__(
        self,
        z_t: jax.Array,
        t: jax.Array,
        cond: Mapping[str, jax.Array],
        train: bool = False,
    ) -> jax.Array:
        """Predict from noisy images.

        z_t: [batch, size, size, image_channels], size divisible by 2**(levels - 1);
        t: [batch] in [0, 1]; cond: what `layers.ConditionEmbedding` and
        `text.TextEmbedding` read, {} if nothing. Dropout acts when train is True and
        needs the rng "dropout". Returns float32 in the shape of z_t, zero at
        initialisation.
        """
        embed = layers.ConditionEmbedding(
            self.condition_width, self.num_classes, self.is_guided, name="condition"
        )
        if self.text.kind == "none":
            condition = layers.Condition(nn.swish(embed(t, cond)))
        else:
            read = TextEmbedding(
                self.text,
                self.dtype,
                self.remat,
                self.scan_blocks,
                self.ready,
                name="text",
            )
            text = read(cond)
            vector = nn.swish(embed(t, cond, text.pooled))
            condition = layers.Condition(vector, text.sequence, text.mask)
        last = len(self.channels) - 1
        x = z_t.astype(self.dtype)
        x = Conv3x3(self.channels[0], self.dtype, name="conv_in")(x)
        kept = []
        for i in range(last):
            x, skips = self._level(i, "down", x.shape[1], train)(x, condition)
            kept.append(skips)
            x = average_pool(x)
            x = layers.dense(self.channels[i + 1], self.dtype, f"widen_{i}")(x)
        if self.position_embedding:
            init = nn.initializers.normal(0.02)
            x = x + self.param("position", init, x.shape[1:]).astype(self.dtype)
        x, _ = self._level(last, "middle", x.shape[1], train)(x, condition)
        for i in reversed(range(last)):
            x = layers.dense(self.channels[i], self.dtype, f"narrow_{i}")(x)
            x = upsample_nearest(x)
            x, _ = self._level(i, "up", x.shape[1], train)(x, condition, kept[i])
        x = GroupNorm(jnp.float32, name="norm_out")(x)
        out = Conv3x3(self.image_channels, jnp.float32, zero_init=True, name="out")
        return out(nn.swish(x))

    def _level(self, i: int, direction: Direction, size: int, train: bool) -> Level:
        """Level i for feature maps of this size."""
        has_dropout = not self.dropout_resolutions or size in self.dropout_resolutions
        options = layers.BlockOptions(
            channels=self.channels[i],
            head_dim=self.head_dim,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout if has_dropout else 0.0,
            dtype=self.dtype,
            train=train,
        )
        has_attention = size in self.attention_resolutions
        block = self.attention_block if has_attention else layers.ResNetBlock

        def make_block(name: str) -> nn.Module:
            return block(options, name=name)

        return Level(
            make_block,
            self.blocks[i],
            direction,
            self.remat,
            self.scan_blocks,
            self.ready,
            size in self.unrolled_resolutions,
            name=f"level_{i}" if direction == "middle" else f"level_{i}_{direction}",
        )
