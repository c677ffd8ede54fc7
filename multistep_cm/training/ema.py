"""Exponential moving average of the parameters."""

import jax
import jax.numpy as jnp

from multistep_cm.losses.signature import Params


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """min(decay, (1 + step) / (10 + step)): early averages forget the initialisation.

    `step` counts the updates made before this one.
    """
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def update_ema(ema: Params, params: Params, decay: jax.Array) -> Params:
    """ema + (1 - decay) (params - ema), leaf by leaf."""
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), ema, params)
