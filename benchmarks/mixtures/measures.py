"""How far a learned map is from the exact one, and samples from the data.

The exact side is solved in float64 once and kept as numpy arrays; the learned side runs
in float32, as it was trained.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from benchmarks.samplers.measures import (
    Floor,
    random_directions,
    sliced_wasserstein,
)
from multistep_cm.diffusion import ddim, samplers, timesteps
from multistep_cm.diffusion.parameterization import add_noise
from multistep_cm.diffusion.schedules import Schedule
from multistep_cm.losses.signature import Params, Predict
from multistep_cm.truth import flows, mixtures, presets

NUM_FLOORS = 16
SOLVER_STEPS = 512

FAR = 0.5
"""A sample this far from its exact place (5 deviations of a mode) is in another mode,
or on its way there."""


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """Starting noise with its exact ends, and data to compare samples with.

    Attributes:
        z_1: noise, float32 [count, d].
        z_0: where the exact flow takes it, float64 [count, d].
        solver_error: largest error of `z_0` as the solver states it; 0 in one
            dimension, where the flow is a closed form.
        data: true draws, float64 [count, d].
        directions: unit columns, [d, number].
        floor: sliced Wasserstein distance of other true draws to `data`.
    """

    z_1: np.ndarray
    z_0: np.ndarray
    solver_error: float
    data: np.ndarray
    directions: np.ndarray
    floor: Floor


@dataclasses.dataclass(frozen=True)
class Probe:
    """Points inside the segments of a K, and where the exact flow takes them.

    Attributes:
        z_t: float32 [count, d], drawn as in training.
        t, t_step: their times and the cleaner ends of their segments, float32 [count].
        z_step: the exact flow's points at `t_step`, float64 [count, d].
    """

    z_t: np.ndarray
    t: np.ndarray
    t_step: np.ndarray
    z_step: np.ndarray


def make_yardstick(
    preset: str, schedule: Schedule, count: int, seed: int = 0
) -> Yardstick:
    """`count` starting points and as many true draws; `seed` decides all of them."""
    noise_key, data_key, floor_key = jax.random.split(jax.random.key(seed), 3)
    with jax.enable_x64(True):
        mixture = presets.PRESETS[preset]("float64")
        dimension = mixture.dimension
        z_1 = np.asarray(jax.random.normal(noise_key, (count, dimension)), np.float32)
        solution = _solve(mixture, schedule, z_1, np.ones(count), np.zeros(count))
        z_0, error = np.asarray(solution.z_s), float(solution.error.max())
        draw = jax.jit(mixtures.draw, static_argnames="number")
        data = np.asarray(draw(mixture, data_key, number=count))
        others = [
            np.asarray(draw(mixture, key, number=count))
            for key in jax.random.split(floor_key, NUM_FLOORS)
        ]
    # In one dimension there is but one direction.
    directions = random_directions(dimension, 128 if dimension > 1 else 1)
    distances = [sliced_wasserstein(other, data, directions) for other in others]
    floor = Floor(float(np.mean(distances)), float(np.std(distances, ddof=1)))
    return Yardstick(z_1, z_0, error, data, directions, floor)


def make_probe(
    preset: str,
    schedule: Schedule,
    student_steps: int,
    teacher_steps: float,
    count: int,
    seed: int = 0,
) -> Probe:
    """Times and noise by algorithm 1 on a grid of `teacher_steps`."""
    with jax.enable_x64(True):
        mixture = presets.PRESETS[preset]("float64")
        per_segment = timesteps.steps_per_segment(teacher_steps, student_steps)
        t, t_step, z_t = (
            np.asarray(array)
            for array in _draw_inside(
                mixture,
                schedule,
                jax.random.key(seed),
                student_steps,
                per_segment,
                count,
            )
        )
        z_t = z_t.astype(np.float32)
        z_step = np.asarray(_solve(mixture, schedule, z_t, t, t_step).z_s)
    return Probe(z_t, t.astype(np.float32), t_step.astype(np.float32), z_step)


@functools.partial(jax.jit, static_argnames=("schedule", "count"))
def _draw_inside(
    mixture: mixtures.Mixture,
    schedule: Schedule,
    key: jax.Array,
    student_steps: ArrayLike,
    per_segment: ArrayLike,
    count: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """t and t_step [count], and z_t [count, d]."""
    time_key, noise_key, data_key = jax.random.split(key, 3)
    times = timesteps.draw_segment_times(
        jax.random.split(time_key, count), student_steps, per_segment
    )
    x = mixtures.draw(mixture, data_key, count)
    noise = jax.random.normal(noise_key, x.shape, x.dtype)
    return times.t, times.t_step, add_noise(x, noise, schedule.logsnr(times.t))


@functools.partial(jax.jit, static_argnames=("schedule",))
def _solve(
    mixture: mixtures.Mixture,
    schedule: Schedule,
    z_t: ArrayLike,
    t: ArrayLike,
    s: ArrayLike,
) -> flows.Solution:
    """The exact flow from `t` to `s` [count] in float64, and its stated error."""
    start = jnp.asarray(z_t, jnp.float64)
    ends = schedule.logsnr(jnp.asarray(t)), schedule.logsnr(jnp.asarray(s))
    if mixture.dimension == 1:
        z_s = flows.transport(mixture)(start, *ends)
        return flows.Solution(z_s, jnp.zeros(start.shape[0]))
    mean = functools.partial(mixtures.posterior_mean, mixture)
    return flows.integrate(mean, start, *ends, num_steps=SOLVER_STEPS)


@functools.partial(jax.jit, static_argnames=("predict", "schedule", "num_steps"))
def ddim_samples(
    predict: Predict,
    params: Params,
    schedule: Schedule,
    z_1: jax.Array,
    num_steps: int,
) -> jax.Array:
    """`num_steps` DDIM steps from `z_1`: algorithm 2 when that is the student's K."""
    return samplers.sample(
        lambda z_t, t, cond: predict(params, z_t, t, cond, None),
        schedule,
        z_1,
        num_steps,
    )


@functools.partial(jax.jit, static_argnames=("predict", "schedule"))
def segment_ends(
    predict: Predict,
    params: Params,
    schedule: Schedule,
    z_t: jax.Array,
    t: jax.Array,
    t_step: jax.Array,
) -> jax.Array:
    """DDIM_{t->t_step}(f(z_t, t), z_t): the flow's end as the network learned it."""
    x_hat = predict(params, z_t, t, {}, None)
    return ddim.ddim_step(x_hat, z_t, schedule.logsnr(t), schedule.logsnr(t_step))


def distances(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """||found - exact|| for every point, [count]."""
    return np.linalg.norm(np.asarray(found, np.float64) - exact, axis=1)


def root_mean_square(values: np.ndarray) -> float:
    """sqrt(mean(values^2))."""
    return float(np.sqrt(np.mean(values**2)))


def measure_samples(
    predict: Predict,
    params: Params,
    schedule: Schedule,
    yardstick: Yardstick,
    num_steps: int,
) -> dict[str, float]:
    """Map error (RMS and median), share of far points, sliced Wasserstein distance."""
    z_0 = np.asarray(ddim_samples(predict, params, schedule, yardstick.z_1, num_steps))
    distance = distances(z_0, yardstick.z_0)
    return {
        "map_error": root_mean_square(distance),
        "median_error": float(np.median(distance)),
        "far_share": float(np.mean(distance > FAR)),
        "sliced_wasserstein": sliced_wasserstein(
            z_0, yardstick.data, yardstick.directions
        ),
    }


def segment_error(
    predict: Predict, params: Params, schedule: Schedule, probe: Probe
) -> float:
    """RMS distance at the segments' ends between learned and exact function."""
    found = segment_ends(predict, params, schedule, probe.z_t, probe.t, probe.t_step)
    return root_mean_square(distances(np.asarray(found), probe.z_step))
