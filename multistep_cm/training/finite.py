"""What becomes of a step whose loss or gradient is not finite: `training.on_nan`.

With `stop` the step is made as any other, and the run ends when the host looks at its
metrics. With `skip` the compiled step itself decides, so that no host waits: the state
stays as it was, but for the step counter and the count of skipped steps.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from multistep_cm.training.state import TrainState

POLICIES = ("stop", "skip")
"""The values of `training.on_nan`."""

SKIPPED = "skipped_steps"
"""The metric of `skip`: int32, the steps of the whole run that were skipped so far."""


def updates_made(state: TrainState) -> jax.Array:
    """Optimizer steps that changed the state: int32 scalar."""
    return state.step - state.skipped


def skip_if_not_finite(
    old: TrainState, new: TrainState, metrics: Mapping[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`new` where loss and gradient norm are finite, else `old` with one more skipped.

    `metrics` hold the global `loss` and `grad_norm`, float32 scalars; they come back
    with `SKIPPED`. For the compiled step: a select fuses with the update that made
    `new`, and reads nothing that the update does not read.
    """
    sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    kept = jax.tree.map(lambda after, before: jnp.where(sound, after, before), new, old)
    skipped = old.skipped + jnp.where(sound, 0, 1).astype(jnp.int32)
    state = kept.replace(step=new.step, skipped=skipped)
    return state, {**metrics, SKIPPED: skipped}


def first_too_many(metrics: Mapping[str, Any], training: ConfigDict) -> int | None:
    """Which step of a call, from 0, must end the run; None when none must.

    `metrics` are those of one call on the host, with an axis of steps if it has
    several. With `stop` that is the first that is not finite, with `skip` the first by
    which more than `training.max_skipped_steps` were skipped.
    """
    bad = ~sound_steps(metrics)
    if training.on_nan == "skip":
        bad &= np.atleast_1d(metrics[SKIPPED]) > training.max_skipped_steps
    return int(np.argmax(bad)) if bad.any() else None


def sound_steps(metrics: Mapping[str, Any]) -> np.ndarray:
    """Of each step of a call, bool [steps], whether loss and gradient are finite."""
    sound: np.ndarray = np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"])
    return np.atleast_1d(sound)
