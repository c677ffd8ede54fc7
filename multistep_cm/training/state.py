"""The train state: arrays only."""

from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from multistep_cm.losses.signature import Params


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes.

    Attributes:
        step: int32 scalar, the number of optimizer steps taken.
        params: float32 network parameters.
        ema: their moving average, which samples and teaches.
        more_emas: averages of other decays, by the names of `ema.more_decays`.
        target: another average, of which a method makes its target; None without one.
        optimizer: optax state.
        skipped: int32 scalar, how many of the steps changed nothing (`finite.py`).
    """

    step: jax.Array
    params: Params
    ema: Params
    more_emas: dict[str, Params]
    target: Params
    optimizer: Any
    skipped: jax.Array


def make_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    has_target: bool = False,
    more_emas: Iterable[str] = (),
) -> TrainState:
    """The state at step 0. Run it inside `jit`, so that no two leaves share memory."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=jax.tree.map(jnp.copy, params),
        ema=jax.tree.map(jnp.copy, params),
        more_emas={name: jax.tree.map(jnp.copy, params) for name in more_emas},
        target=jax.tree.map(jnp.copy, params) if has_target else None,
        optimizer=optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
    )
