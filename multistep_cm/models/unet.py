"""The UNet's attention levels: a ResNet block, then self-attention."""

import flax.linen as nn
import jax

from multistep_cm.models.layers import (
    BlockOptions,
    Condition,
    ResNetBlock,
    SelfAttention,
    attend_to_text,
)


class ResNetAttentionBlock(nn.Module):
    """x = ResNet(x, skip); x += attention; with a caption, x += attention to it."""

    options: BlockOptions

    @nn.compact
    def __call__(
        self, x: jax.Array, condition: Condition, skip: jax.Array | None
    ) -> jax.Array:
        """x, skip: [batch, height, width, channels]; returns the same shape."""
        o = self.options
        x = ResNetBlock(o, name="resnet")(x, condition, skip)
        x = x + SelfAttention(o.head_dim, o.dtype, name="attention")(x)
        return attend_to_text(x, condition, o)
