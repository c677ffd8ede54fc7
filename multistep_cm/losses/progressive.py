"""Progressive distillation (Salimans and Ho 2022): two teacher steps in one.

    z_mid = hop_{t->mid}(teacher, z_t)       t = i / N, mid = t - 1 / 2N, s = t - 1 / N
    z_s   = hop_{mid->s}(teacher, z_mid)
    loss  = w_t || invDDIM_{t->s}(z_s, z_t) - f(z_t, t) ||^2 / d

The teacher is the diffusion model in the first phase and the student of 2N steps after
it, so a student of few steps is a chain of runs that each halve the count. aDDIM is a
hop for the first phase: a student's jumps lose no variance that could be put back.
"""

import jax
import jax.numpy as jnp

from multistep_cm.diffusion import ddim, timesteps
from multistep_cm.diffusion.parameterization import add_noise
from multistep_cm.diffusion.schedules import Schedule
from multistep_cm.losses.hops import make_hop
from multistep_cm.losses.segments import (
    ConsistencyOptions,
    segment_target,
    weighted_distance,
)
from multistep_cm.losses.signature import Batch, Loss, Metrics, Params, Predict


def make_progressive_loss(
    predict: Predict, schedule: Schedule, options: ConsistencyOptions
) -> Loss:
    """A `Loss` that reads `frozen["teacher_params"]` and `student_steps` = N.

    Of `options` it reads the hop with its eta, weight, norm and multiscale; there is no
    grid but the student's own. A traced `frozen["student_steps"]` takes the place of
    `options.student_steps`.
    """
    hop = make_hop(predict, schedule, options.hop, options.eta)

    def loss(
        params: Params, batch: Batch, keys: jax.Array, step: jax.Array, frozen: Params
    ) -> tuple[jax.Array, Metrics]:
        x, cond, teacher = batch["image"], batch["cond"], frozen["teacher_params"]
        student_steps = frozen.get("student_steps", options.student_steps)
        time_keys, noise_keys, dropout_keys = jax.vmap(
            lambda key: jax.random.split(key, 3), out_axes=1
        )(keys)
        # One grid step a segment: s is the segment's end.
        times = timesteps.draw_segment_times(time_keys, student_steps, 1)
        middle = 0.5 * (times.t + times.s)
        logsnr_t, logsnr_middle, logsnr_s = (
            schedule.logsnr(time) for time in (times.t, middle, times.s)
        )
        z_t = add_noise(x, timesteps.draw_noise(noise_keys, x), logsnr_t)

        x_first = hop(teacher, x, z_t, times.t, middle, cond)
        z_middle = ddim.ddim_step(x_first, z_t, logsnr_t, logsnr_middle)
        x_second = hop(teacher, x, z_middle, middle, times.s, cond)
        x_ref = segment_target(x_second, x_first, logsnr_t, logsnr_middle, logsnr_s)

        x_hat = predict(params, z_t, times.t, cond, dropout_keys[0])
        difference = jax.lax.stop_gradient(x_ref) - x_hat
        losses = weighted_distance(difference, logsnr_t, logsnr_s, options)
        return jnp.mean(losses), {"t": times.t, "loss": losses}

    return loss
