"""The UNet's attention levels: a ResNet block, then self-attention."""

import flax.linen as nn
import jax

from multistep_cm.models.layers import BlockOptions, ResNetBlock, SelfAttention


class ResNetAttentionBlock(nn.Module):
    """x = ResNet(x, skip); x += attention."""

    options: BlockOptions

    @nn.compact
    def __call__(
        self, x: jax.Array, condition: jax.Array, skip: jax.Array | None
    ) -> jax.Array:
        """x, skip: [batch, height, width, channels]; returns the same shape."""
        o = self.options
        x = ResNetBlock(o, name="resnet")(x, condition, skip)
        return x + SelfAttention(o.head_dim, o.dtype, name="attention")(x)
