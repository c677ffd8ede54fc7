"""The time grid of consistency models (Song et al. 2023): Karras's, in every segment.

Uniform in (sigma / alpha)^(1 / rho) between the ends of a segment (Karras et al. 2022,
eq. 5), where the paper's own grid is uniform in t. With one segment it is the grid of
consistency models, cut off at the ends of the schedule.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.typing import ArrayLike

from multistep_cm.diffusion.schedules import Schedule
from multistep_cm.diffusion.timesteps import SegmentTimes

RHO = 7.0
LOG_MEAN, LOG_DEVIATION = -1.1, 2.0
"""Of log(sigma / alpha) in improved consistency training (Song and Dhariwal 2023)."""


def noise_root(logsnr: ArrayLike) -> jax.Array:
    """(sigma / alpha)^(1 / rho), in which the grid is uniform."""
    return jnp.exp(-jnp.asarray(logsnr) / (2 * RHO))


def time_of_root(schedule: Schedule, root: jax.Array) -> jax.Array:
    """The time whose `noise_root` this is."""
    return schedule.inverse(-2 * RHO * jnp.log(root))


def draw_karras_times(
    keys: jax.Array,
    schedule: Schedule,
    student_steps: ArrayLike,
    per_segment: ArrayLike,
    lognormal: bool,
) -> SegmentTimes:
    """As `timesteps.draw_segment_times`, one draw for each of `keys` [batch].

    The segment is uniform. The grid step within it is uniform too, or, if `lognormal`,
    the one that holds a log-normal sigma / alpha cut off at the segment's ends: then a
    grid step has the probability that the normal gives to its stretch of
    log(sigma / alpha), for a traced count too.
    """
    segment_keys, relative_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    segment = jax.vmap(lambda key: jax.random.randint(key, (), 0, student_steps))(
        segment_keys
    )
    steps = jnp.asarray(student_steps, float)
    t_step, t_end = segment / steps, (segment + 1) / steps
    logsnr_low, logsnr_high = schedule.logsnr(t_step), schedule.logsnr(t_end)
    low, high = noise_root(logsnr_low), noise_root(logsnr_high)
    if lognormal:
        log_noise = _truncated_normal(
            relative_keys, -0.5 * logsnr_low, -0.5 * logsnr_high
        )
        position = (jnp.exp(log_noise / RHO) - low) / (high - low)
        relative = jnp.ceil(position * per_segment).astype(jnp.int32)
        relative = jnp.clip(relative, 1, per_segment)
    else:
        relative = jax.vmap(
            lambda key: jax.random.randint(key, (), 1, jnp.asarray(per_segment) + 1)
        )(relative_keys)

    def at(index: jax.Array) -> jax.Array:
        # Float32, or float64 where that is enabled.
        share = jnp.asarray(index, float) / per_segment
        return time_of_root(schedule, low + share * (high - low))

    is_first = relative == 1
    t = jnp.where(relative == per_segment, t_end, at(relative))
    s = jnp.where(is_first, t_step, at(relative - 1))
    return SegmentTimes(t=t, s=s, t_step=t_step, is_first=is_first)


def _truncated_normal(keys: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Of mean LOG_MEAN, between `low` and `high` [batch]; one draw a key."""
    standard_low = (low - LOG_MEAN) / LOG_DEVIATION
    standard_high = (high - LOG_MEAN) / LOG_DEVIATION
    # In the upper tail 1 - ndtr has no digits left: mirror what lies above the mean.
    sign = jnp.where(standard_low > 0, -1.0, 1.0)
    ends = sign * standard_low, sign * standard_high
    below, above = ndtr(jnp.minimum(*ends)), ndtr(jnp.maximum(*ends))
    uniform = jax.vmap(jax.random.uniform)(keys)
    draw = ndtri(below + uniform * (above - below))
    draw = jnp.clip(draw, jnp.minimum(*ends), jnp.maximum(*ends))
    return LOG_MEAN + LOG_DEVIATION * sign * draw
