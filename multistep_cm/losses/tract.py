"""TRACT (Berthelot et al. 2023): transitive closure time-distillation.

    z_s   = DDIM_{t->s}(clip(f_teacher(z_t, t)), z_t)    one step of the teacher's grid
    z_ref = DDIM_{s->t_step}(f_self(z_s, s), z_s)        f_self: average of the student
    loss  = max(SNR_t, 1) || invDDIM_{t->t_step}(z_ref, z_t) - f(z_t, t) ||^2 / d

A phase leads from the teacher's grid (`teacher_steps_start` = `_end`) to
`student_steps`; the next phase takes this student as its teacher, on the grid of its
steps, such as 1024 -> 32 -> 1.
"""

import jax
import jax.numpy as jnp

from multistep_cm.diffusion import ddim, timesteps
from multistep_cm.diffusion.parameterization import add_noise, per_example
from multistep_cm.diffusion.schedules import Schedule
from multistep_cm.losses.hops import make_hop
from multistep_cm.losses.segments import (
    ConsistencyOptions,
    draw_times,
    segment_target,
    weighted_distance,
)
from multistep_cm.losses.signature import Batch, Loss, Metrics, Params, Predict


def make_tract_loss(
    predict: Predict,
    schedule: Schedule,
    options: ConsistencyOptions,
    limits: tuple[float, float],
) -> Loss:
    """A `Loss` that reads `frozen["teacher_params"]` and `frozen["target_params"]`.

    The teacher's x is clipped to `limits`, the range of the data. The self-teacher, the
    average of the student with `target_decay` (0: the student itself), runs without
    dropout. A traced `frozen["student_steps"]` takes the place of
    `options.student_steps`.
    """
    hop = make_hop(predict, schedule, options.hop, options.eta)

    def loss(
        params: Params, batch: Batch, keys: jax.Array, step: jax.Array, frozen: Params
    ) -> tuple[jax.Array, Metrics]:
        x, cond = batch["image"], batch["cond"]
        student_steps = frozen.get("student_steps", options.student_steps)
        time_keys, noise_keys, dropout_keys = jax.vmap(
            lambda key: jax.random.split(key, 3), out_axes=1
        )(keys)
        times = draw_times(time_keys, step, student_steps, schedule, options)
        logsnr_t, logsnr_s, logsnr_u = (
            schedule.logsnr(time) for time in (times.t, times.s, times.t_step)
        )
        z_t = add_noise(x, timesteps.draw_noise(noise_keys, x), logsnr_t)

        x_hop = hop(frozen["teacher_params"], x, z_t, times.t, times.s, cond)
        x_hop = jnp.clip(x_hop, *limits)
        z_s = ddim.ddim_step(x_hop, z_t, logsnr_t, logsnr_s)
        target_params = frozen["target_params"] if options.target_decay else params
        x_self = predict(target_params, z_s, times.s, cond, None)
        # At t_step the network speaks for the next segment: its output is not used.
        x_self = jnp.where(per_example(times.is_first, x), x_hop, x_self)
        x_ref = segment_target(x_self, x_hop, logsnr_t, logsnr_s, logsnr_u)

        x_hat = predict(params, z_t, times.t, cond, dropout_keys[0])
        difference = jax.lax.stop_gradient(x_ref) - x_hat
        losses = weighted_distance(difference, logsnr_t, logsnr_s, options)
        return jnp.mean(losses), {"t": times.t, "loss": losses}

    return loss
