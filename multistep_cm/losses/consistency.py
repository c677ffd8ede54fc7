"""Multistep consistency training (CT) and distillation (CD): algorithm 1 of the paper.

    z_t     = alpha_t x + sigma_t eps                 t in segment [t_step, ..]
    z_s     = aDDIM_{t->s}(x_teacher, z_t, x_var)     x_teacher = x | f_teacher(z_t, t)
    z_ref   = DDIM_{s->t_step}(stop_gradient(f(z_s, s)), z_s)
    loss    = w_t || invDDIM_{t->t_step}(z_ref, z_t) - f(z_t, t) ||

CT and CD differ in x_teacher alone. The inverse is never formed: see `segment_target`.

With one segment, Karras's grid, an averaged target and their weights these are the
consistency models of Song et al. 2023 and of improved consistency training (Song and
Dhariwal 2023): presets in `stages.py`.
"""

import jax
import jax.numpy as jnp

from multistep_cm.diffusion import ddim, timesteps
from multistep_cm.diffusion.guidance import Guidance
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


def make_consistency_loss(
    predict: Predict,
    schedule: Schedule,
    options: ConsistencyOptions,
    distill: bool,
    null_label: int = 0,
) -> Loss:
    """Algorithm 1 as a `Loss`; `distill` is CD and reads `frozen["teacher_params"]`.

    A traced `frozen["student_steps"]` takes the place of `options.student_steps`, so
    that one compiled step serves the students of every K.
    The student's two calls share weights (unless `target_decay` says otherwise) and
    dropout mask; the target carries no gradient; the teacher runs without dropout.
    A guided teacher takes `null_label` for "no class"; the student is never guided and
    learns what the guidance makes.
    """
    guidance = Guidance(options.guidance_scale, null_label, options.guidance_interval)
    hop = make_hop(predict, schedule, options.hop, options.eta, guidance)

    def loss(
        params: Params, batch: Batch, keys: jax.Array, step: jax.Array, frozen: Params
    ) -> tuple[jax.Array, Metrics]:
        x, cond = batch["image"], batch["cond"]
        student_steps = frozen.get("student_steps", options.student_steps)
        target_params = frozen["target_params"] if options.target_decay else params
        time_keys, noise_keys, dropout_keys = jax.vmap(
            lambda key: jax.random.split(key, 3), out_axes=1
        )(keys)
        times = draw_times(time_keys, step, student_steps, schedule, options)
        logsnr_t = schedule.logsnr(times.t)
        logsnr_s = schedule.logsnr(times.s)
        logsnr_u = schedule.logsnr(times.t_step)
        z_t = add_noise(x, timesteps.draw_noise(noise_keys, x), logsnr_t)

        # In CT the data is its own teacher: x_var is 0 and every hop is DDIM.
        x_hop = x
        if distill:
            teacher = frozen["teacher_params"]
            x_hop = jax.lax.stop_gradient(hop(teacher, x, z_t, times.t, times.s, cond))
        z_s = ddim.ddim_step(x_hop, z_t, logsnr_t, logsnr_s)
        dropout_key = target_key = dropout_keys[0]
        if not options.same_dropout:
            target_key = jax.random.fold_in(dropout_key, 1)
        still = jax.lax.stop_gradient(target_params)
        x_ref_hat = predict(still, z_s, times.s, cond, target_key)
        # At t_step the network speaks for the next segment: its output is not used.
        first = per_example(times.is_first, x)
        x_ref_hat = jnp.where(first, x_hop, x_ref_hat)
        x_ref = segment_target(x_ref_hat, x_hop, logsnr_t, logsnr_s, logsnr_u)

        x_hat = predict(params, z_t, times.t, cond, dropout_key)
        losses = weighted_distance(x_ref - x_hat, logsnr_t, logsnr_s, options)
        return jnp.mean(losses), {"t": times.t, "loss": losses}

    return loss
