"""Exponential moving averages of the parameters."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from multistep_cm.losses.signature import Params


def more_decays(training: ConfigDict) -> dict[str, float]:
    """The averages of `training.more_ema_decays`: name in a checkpoint to decay."""
    return {f"ema_{float(decay)!r}": float(decay) for decay in training.more_ema_decays}


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """min(decay, (1 + step) / (10 + step)): early averages forget the initialisation.

    `step` counts the updates made before this one.
    """
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def target_decay(
    base: float, first_steps: jax.Array, num_steps: jax.Array
) -> jax.Array:
    """base^((first_steps + 1) / (num_steps + 1)), the decay of an averaged target.

    Both counts are of grid steps, at the first iteration and now. On a constant grid it
    is `base`; while the grid is refined it is mu(k) = exp(s_0 log mu_0 / N(k)) of
    consistency models (Song et al. 2023, appendix C), which count points.
    """
    return jnp.power(base, (first_steps + 1) / (num_steps + 1))


def update_ema(ema: Params, params: Params, decay: jax.Array) -> Params:
    """ema + (1 - decay) (params - ema), leaf by leaf."""
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), ema, params)
