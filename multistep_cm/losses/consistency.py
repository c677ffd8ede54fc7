"""Multistep consistency training (CT) and distillation (CD): algorithm 1 of the paper.

    z_t     = alpha_t x + sigma_t eps                 t in segment [t_step, ..]
    z_s     = aDDIM_{t->s}(x_teacher, z_t, x_var)     x_teacher = x | f_teacher(z_t, t)
    z_ref   = DDIM_{s->t_step}(stop_gradient(f(z_s, s)), z_s)
    loss    = w_t || invDDIM_{t->t_step}(z_ref, z_t) - f(z_t, t) ||

CT and CD differ in x_teacher alone. The inverse is never formed: see `segment_target`.
"""

import dataclasses
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from multistep_cm.diffusion import ddim, timesteps
from multistep_cm.diffusion.parameterization import Conditioning, add_noise, per_example
from multistep_cm.diffusion.schedules import Schedule
from multistep_cm.diffusion.weighting import (
    Norm,
    Weight,
    loss_weight,
    multiscale_huber,
)
from multistep_cm.losses.signature import Batch, Loss, Metrics, Params, Predict

Hop: TypeAlias = Literal["ddim", "addim", "heun"]


@dataclasses.dataclass(frozen=True)
class ConsistencyOptions:
    """What the paper sets and what it leaves open.

    Attributes:
        student_steps: number of segments K; 1 is a consistency model.
        teacher_steps_start: grid steps over [0, 1] at the first iteration.
        teacher_steps_end: the same after `anneal_steps` iterations.
        anneal_steps: iterations of the geometric annealing; 0 is constant at the end.
        eta: share of ||x_teacher - x||^2 that aDDIM puts back.
        hop: integrator of the teacher's step from t to s.
        weight: loss weight by name.
        norm: Huber norm of each example, or of each element.
        huber_epsilon: where the norm turns quadratic.
        multiscale: number of 2x2 average pools whose differences count too.
    """

    student_steps: int
    teacher_steps_start: float = 64.0
    teacher_steps_end: float = 1280.0
    anneal_steps: int = 100_000
    eta: float = 0.75
    hop: Hop = "addim"
    weight: Weight = "snr_plus_1"
    norm: Norm = "example"
    huber_epsilon: float = 1e-4
    multiscale: int = 0


def segment_target(
    x_ref_hat: jax.Array,
    x_hop: jax.Array,
    logsnr_t: jax.Array,
    logsnr_s: jax.Array,
    logsnr_u: jax.Array,
) -> jax.Array:
    """invDDIM_{t->u}(DDIM_{s->u}(x_ref_hat, DDIM_{t->s}(x_hop, z_t)), z_t), u = t_step.

    A DDIM step is a straight line in k = exp(logsnr / 2), so the composition is the
    mean of both x, weighted by the distance that each covers:

        [(k_u - k_s) x_ref_hat + (k_s - k_t) x_hop] / (k_u - k_t)

    Equal to the literal form in exact arithmetic, and without its cancellation, which
    in float32 costs more than the paper's Huber epsilon. At s = u it is x_hop exactly.
    `x_ref_hat`, `x_hop` [batch, ...]; log-SNR [batch], increasing from t to s to u.
    """
    hop_share = jnp.expm1(0.5 * (logsnr_s - logsnr_t)) / jnp.expm1(
        0.5 * (logsnr_u - logsnr_t)
    )
    share = per_example(hop_share, x_hop)
    return jnp.where(share >= 1.0, x_hop, x_ref_hat + share * (x_hop - x_ref_hat))


def make_consistency_loss(
    predict: Predict, schedule: Schedule, options: ConsistencyOptions, distill: bool
) -> Loss:
    """Algorithm 1 as a `Loss`; `distill` is CD and reads `frozen["teacher_params"]`.

    A traced `frozen["student_steps"]` takes the place of `options.student_steps`, so
    that one compiled step serves the students of every K.
    The student's two calls share weights and dropout mask; the target carries no
    gradient; the teacher runs without dropout.
    """

    def hop(
        x: jax.Array,
        z_t: jax.Array,
        times: timesteps.SegmentTimes,
        logsnr_t: jax.Array,
        logsnr_s: jax.Array,
        cond: Conditioning,
        frozen: Params,
    ) -> jax.Array:
        """The x along which DDIM makes the teacher's step from t to s."""
        if not distill:
            # The data is its own teacher: x_var is 0 and every hop is DDIM.
            return x
        teacher = frozen["teacher_params"]
        x_teacher = predict(teacher, z_t, times.t, cond, None)
        if options.hop == "ddim":
            return x_teacher
        if options.hop == "addim":
            x_var = ddim.x_variance(x, x_teacher, options.eta)
            return ddim.addim_effective_x(x_teacher, z_t, logsnr_t, logsnr_s, x_var)
        z_s = ddim.ddim_step(x_teacher, z_t, logsnr_t, logsnr_s)
        x_teacher_s = predict(teacher, z_s, times.s, cond, None)
        return ddim.heun_effective_x(x_teacher, x_teacher_s, logsnr_t, logsnr_s)

    def loss(
        params: Params, batch: Batch, keys: jax.Array, step: jax.Array, frozen: Params
    ) -> tuple[jax.Array, Metrics]:
        x, cond = batch["image"], batch["cond"]
        student_steps = frozen.get("student_steps", options.student_steps)
        time_keys, noise_keys, dropout_keys = jax.vmap(
            lambda key: jax.random.split(key, 3), out_axes=1
        )(keys)
        per_segment = timesteps.steps_per_segment(
            timesteps.teacher_steps(
                step,
                options.teacher_steps_start,
                options.teacher_steps_end,
                options.anneal_steps,
            ),
            student_steps,
        )
        times = timesteps.draw_segment_times(time_keys, student_steps, per_segment)
        logsnr_t = schedule.logsnr(times.t)
        logsnr_s = schedule.logsnr(times.s)
        logsnr_u = schedule.logsnr(times.t_step)
        z_t = add_noise(x, timesteps.draw_noise(noise_keys, x), logsnr_t)

        x_hop = jax.lax.stop_gradient(
            hop(x, z_t, times, logsnr_t, logsnr_s, cond, frozen)
        )
        z_s = ddim.ddim_step(x_hop, z_t, logsnr_t, logsnr_s)
        still = jax.lax.stop_gradient(params)
        x_ref_hat = predict(still, z_s, times.s, cond, dropout_keys[0])
        # At t_step the network speaks for the next segment: its output is not used.
        first = per_example(times.is_first, x)
        x_ref_hat = jnp.where(first, x_hop, x_ref_hat)
        x_ref = segment_target(x_ref_hat, x_hop, logsnr_t, logsnr_s, logsnr_u)

        x_hat = predict(params, z_t, times.t, cond, dropout_keys[0])
        distance = multiscale_huber(
            x_ref - x_hat, options.huber_epsilon, options.norm, options.multiscale
        )
        losses = loss_weight(options.weight, logsnr_t) * distance
        return jnp.mean(losses), {"t": times.t, "loss": losses}

    return loss
