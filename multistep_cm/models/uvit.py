"""The U-ViT's attention levels: transformer blocks (paper section 5, from simple
diffusion, arXiv 2301.11093)."""

from functools import partial

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from multistep_cm.models import layers
from multistep_cm.models.dropout import Dropout
from multistep_cm.models.keeping import KEPT
from multistep_cm.models.norms import layer_norm


class MLP(nn.Module):
    """Norm, Dense, swish, FiLM on the hidden layer, dropout, zero-init Dense.

    Returns what is to be added to x.
    """

    options: layers.BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array, condition: layers.Condition) -> jax.Array:
        """x: [batch, height, width, channels]; returns the same shape."""
        o = self.options
        h = layer_norm(o.dtype, "norm")(x)
        h = layers.dense(o.mlp_ratio * o.channels, o.dtype, "up")(h)
        film = layers.FiLM(h.shape[-1], o.dtype, name="film")(condition.vector)
        scale, shift = (part[:, None, None] for part in film)
        h = _activate(h, scale, shift)
        h = Dropout(o.dropout, deterministic=not o.train)(h)
        return layers.dense(o.channels, o.dtype, "down", zero_init=True)(h)


class TransformerBlock(nn.Module):
    """x += skip; x += MLP; x += attention; with a caption, x += attention to it."""

    options: layers.BlockOptions

    @nn.compact
    def __call__(
        self, x: jax.Array, condition: layers.Condition, skip: jax.Array | None
    ) -> jax.Array:
        """x, skip: [batch, height, width, channels]; returns the same shape."""
        o = self.options
        if skip is not None:
            x = x + skip
        x = checkpoint_name(x + MLP(o, name="mlp")(x, condition), KEPT)
        x = x + layers.SelfAttention(o.head_dim, o.dtype, name="attention")(x)
        return layers.attend_to_text(x, condition, o)


@partial(jax.checkpoint, prevent_cse=False)
def _activate(h: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """FiLM of swish(h): computed again backwards, so that h is all that is kept."""
    return nn.swish(h) * (1 + scale) + shift
