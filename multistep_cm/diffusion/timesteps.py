"""Where on the time axis to train: segments, annealed grids, draws.

Algorithm 1 of the paper cuts [0, 1] into `student_steps` segments, each of
`steps_per_segment` grid steps. Both counts may be traced values, so annealing the
grid never compiles again.
"""

import dataclasses
import functools
import math
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Curriculum: TypeAlias = Literal["geometric", "square_root", "doubling"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["t", "s", "t_step", "is_first"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class SegmentTimes:
    """One draw per example; all fields [batch].

    `t` in (t_step, t_step + 1 / student_steps] is a grid time, `s` the grid time below
    it, `t_step` the cleaner end of the segment; `is_first` says s == t_step.
    """

    t: jax.Array
    s: jax.Array
    t_step: jax.Array
    is_first: jax.Array


def teacher_steps(
    step: ArrayLike,
    start: float,
    end: float,
    anneal_steps: int,
    curriculum: Curriculum = "geometric",
) -> jax.Array:
    """N_teacher(i), the steps of the grid over [0, 1] at iteration i; a scalar.

    With f = clip(i / anneal_steps, 0, 1):

    - `geometric`: exp(log start + f (log end - log start)); the paper uses 64 -> 1280
      over 100,000 iterations.
    - `square_root`: ceil(sqrt(f ((end + 1)^2 - start^2) + start^2)) - 1, at least 1, of
      consistency models (Song et al. 2023, appendix C), where start counts points and
      the first grid has start - 1 steps.
    - `doubling`: min(start 2^floor(f (log2(end / start) + 1)), end), of improved
      consistency training (Song and Dhariwal 2023).

    `anneal_steps = 0` gives `end`. Raises ValueError for another curriculum.
    """
    if curriculum not in get_args(Curriculum):
        expected = get_args(Curriculum)
        raise ValueError(f"curriculum is {curriculum!r}, expected one of {expected}")
    step = jnp.asarray(step, float)
    fraction = jnp.clip(step / max(anneal_steps, 1), 0.0, 1.0) if anneal_steps else 1.0
    if curriculum == "square_root":
        square = fraction * ((end + 1) ** 2 - start**2) + start**2
        return jnp.maximum(jnp.ceil(jnp.sqrt(square)) - 1, 1)
    if curriculum == "doubling":
        doublings = jnp.floor(fraction * (math.log2(end / start) + 1))
        return jnp.minimum(start * 2.0**doublings, end)
    return jnp.exp(jnp.log(start) + fraction * (jnp.log(end) - jnp.log(start)))


def steps_per_segment(
    num_teacher_steps: ArrayLike, student_steps: ArrayLike
) -> jax.Array:
    """N_per = round(N_teacher / student_steps), at least 1. Int32 scalar."""
    per_segment = jnp.round(jnp.asarray(num_teacher_steps) / student_steps)
    return jnp.maximum(per_segment, 1).astype(jnp.int32)


def draw_segment_times(
    keys: jax.Array, student_steps: ArrayLike, per_segment: ArrayLike
) -> SegmentTimes:
    """Algorithm 1's draws, one for each of `keys` [batch].

    `step ~ U{0 .. student_steps - 1}` and `n_rel ~ U{1 .. per_segment}`;
    `T = student_steps * per_segment`, `t = t_step + n_rel / T`, `s = t - 1 / T`. Where
    n_rel is 1, s equals t_step to the last bit.
    """

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        step_key, relative_key = jax.random.split(key)
        segment = jax.random.randint(step_key, (), 0, student_steps)
        relative = jax.random.randint(relative_key, (), 1, per_segment + 1)
        return segment, relative

    segment, relative = jax.vmap(draw)(keys)
    # Float32, or float64 where that is enabled.
    total = jnp.asarray(student_steps * per_segment, float)
    index = segment * per_segment + relative
    t_step = segment / jnp.asarray(student_steps, float)
    is_first = relative == 1
    # A compiler may divide by multiplying with 1 / T, which is off by a bit.
    s = jnp.where(is_first, t_step, (index - 1) / total)
    return SegmentTimes(t=index / total, s=s, t_step=t_step, is_first=is_first)


def draw_uniform_times(keys: jax.Array) -> jax.Array:
    """t ~ U[0, 1), one for each of `keys`; [batch], float64 where that is enabled."""
    return jax.vmap(jax.random.uniform)(keys)


def draw_noise(keys: jax.Array, like: jax.Array) -> jax.Array:
    """eps ~ N(0, I) of the shape and dtype of `like` [batch, ...], one key each.

    A key for every example makes the draw independent of how the batch is cut into
    microbatches or spread over devices.
    """
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(
        keys
    )
