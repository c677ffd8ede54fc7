"""What the methods that learn one jump per segment share: options, times, target."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from multistep_cm.diffusion import timesteps
from multistep_cm.diffusion.guidance import ALWAYS, Interval
from multistep_cm.diffusion.karras import draw_karras_times
from multistep_cm.diffusion.parameterization import per_example
from multistep_cm.diffusion.schedules import Schedule
from multistep_cm.diffusion.weighting import (
    Norm,
    Weight,
    loss_weight,
    multiscale_norm,
)
from multistep_cm.losses.hops import HopName

GRIDS = ("uniform", "karras", "karras_lognormal")


@dataclasses.dataclass(frozen=True)
class ConsistencyOptions:
    """What the papers set and what they leave open.

    Attributes:
        student_steps: number of segments K; 1 is a consistency model.
        teacher_steps_start: grid steps over [0, 1] at the first iteration.
        teacher_steps_end: the same after `anneal_steps` iterations.
        anneal_steps: iterations of the annealing; 0 is constant at the end.
        curriculum: how the grid is refined, see `timesteps.teacher_steps`.
        grid: times uniform in t (the paper), or as in `diffusion/karras.py`.
        eta: share of ||x_teacher - x||^2 that aDDIM puts back.
        hop: integrator of the teacher's step from t to s.
        weight: loss weight by name.
        norm: of the difference between target and prediction, by name.
        huber_epsilon: where that norm turns quadratic.
        multiscale: number of 2x2 average pools whose differences count too.
        same_dropout: student and target calls share one dropout mask.
        target_decay: decay of the average of the student's weights that makes the
            target, `frozen["target_params"]`; 0 is the student itself (the paper).
        guidance_scale: of the teacher of CD; 0 is none.
        guidance_range: (low, high) of scales that are drawn for each example and told
            to the student, in the place of `guidance_scale`; () is none.
        guidance_interval: the times t of its calls that are guided.
    """

    student_steps: int
    teacher_steps_start: float = 64.0
    teacher_steps_end: float = 1280.0
    anneal_steps: int = 100_000
    curriculum: timesteps.Curriculum = "geometric"
    grid: str = "uniform"
    eta: float = 0.75
    hop: HopName = "addim"
    weight: Weight = "snr_plus_1"
    norm: Norm = "example"
    huber_epsilon: float = 1e-4
    multiscale: int = 0
    same_dropout: bool = True
    target_decay: float = 0.0
    guidance_scale: float = 0.0
    guidance_range: tuple[float, ...] = ()
    guidance_interval: Interval = ALWAYS


def num_teacher_steps(step: ArrayLike, options: ConsistencyOptions) -> jax.Array:
    """N_teacher at this iteration, a scalar."""
    return timesteps.teacher_steps(
        step,
        options.teacher_steps_start,
        options.teacher_steps_end,
        options.anneal_steps,
        options.curriculum,
    )


def draw_times(
    keys: jax.Array,
    step: jax.Array,
    student_steps: ArrayLike,
    schedule: Schedule,
    options: ConsistencyOptions,
) -> timesteps.SegmentTimes:
    """Algorithm 1's draws on the grid of this iteration, one for each of `keys`."""
    total = num_teacher_steps(step, options)
    per_segment = timesteps.steps_per_segment(total, student_steps)
    if options.grid == "uniform":
        return timesteps.draw_segment_times(keys, student_steps, per_segment)
    lognormal = options.grid == "karras_lognormal"
    return draw_karras_times(keys, schedule, student_steps, per_segment, lognormal)


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


def weighted_distance(
    difference: jax.Array,
    logsnr_t: jax.Array,
    logsnr_s: jax.Array,
    options: ConsistencyOptions,
) -> jax.Array:
    """w_t ||difference||, [batch]; `difference` [batch, ...] is of two x."""
    distance = multiscale_norm(
        difference, options.huber_epsilon, options.norm, options.multiscale
    )
    return loss_weight(options.weight, logsnr_t, logsnr_s) * distance
