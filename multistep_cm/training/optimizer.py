"""Adam with warm-up, decay and clipping by global norm, all from optax."""

import optax
from ml_collections import ConfigDict


def make_learning_rate(training: ConfigDict) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, then constant, or down to 0 at the last step.

    `training` holds `num_steps`, `learning_rate`, `warmup_steps` and `decay`.
    """
    peak = training.learning_rate
    warmup = min(training.warmup_steps, training.num_steps)
    rest = max(training.num_steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }[training.decay]
    # The first update already moves: step 0 has 1 / warmup of the peak.
    ramp = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after], [warmup]) if warmup else after


def make_optimizer(training: ConfigDict) -> optax.GradientTransformation:
    """Clip by global norm, Adam with the paper group's constants, learning rate."""
    return optax.chain(
        optax.clip_by_global_norm(training.clip_norm),
        optax.scale_by_adam(training.beta1, training.beta2, training.epsilon),
        optax.scale_by_learning_rate(make_learning_rate(training)),
    )
