"""A residual MLP over all values of an image or a point at once.

For data with few dimensions: the mixtures of `truth/` and tiny images. It is the
U-ViT's MLP block on one position that holds everything.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from multistep_cm.models import layers
from multistep_cm.models.level import Level, Ready
from multistep_cm.models.norms import layer_norm
from multistep_cm.models.uvit import MLP


class ResidualBlock(nn.Module):
    """x += MLP."""

    options: layers.BlockOptions

    @nn.compact
    def __call__(
        self, x: jax.Array, condition: layers.Condition, skip: jax.Array | None
    ) -> jax.Array:
        """x: [batch, 1, 1, channels]; returns the same shape. There are no skips."""
        return x + MLP(self.options, name="mlp")(x, condition)


class ResidualMLP(nn.Module):
    """A network from (z_t, t, cond) to a prediction in the shape of z_t.

    `count` blocks, all with the width and dropout of `options`.
    """

    options: layers.BlockOptions
    count: int
    condition_width: int
    remat: str
    scan_blocks: bool
    num_classes: int
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
        """As `trunk.Trunk.__call__`, for z_t [batch, ...] of any shape."""
        options = dataclasses.replace(self.options, train=train)
        embed = layers.ConditionEmbedding(
            self.condition_width, self.num_classes, self.is_guided, name="condition"
        )
        condition = layers.Condition(nn.swish(embed(t, cond)))
        x = z_t.reshape(z_t.shape[0], 1, 1, -1)
        size = x.shape[-1]
        x = layers.dense(options.channels, options.dtype, "widen")(x)

        def make_block(name: str) -> nn.Module:
            return ResidualBlock(options, name=name)

        level = Level(
            make_block,
            self.count,
            "middle",
            self.remat,
            self.scan_blocks,
            self.ready,
            name="level_0",
        )
        x, _ = level(x, condition)
        x = layer_norm(jnp.float32, "norm_out")(x)
        x = layers.dense(size, jnp.float32, "out", zero_init=True)(x)
        return x.reshape(z_t.shape)
