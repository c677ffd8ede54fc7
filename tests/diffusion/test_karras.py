"""Karras's grid in every segment, and the draws of improved consistency training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from multistep_cm.diffusion import karras
from multistep_cm.diffusion.schedules import Schedule, cosine, interpolated_cosine
from multistep_cm.diffusion.timesteps import SegmentTimes
from tests.diffusion import reference

SCHEDULES = {
    "cosine": (cosine(), {}),
    "interpolated": (
        interpolated_cosine(32, 64, 64),
        {"low": 32.0, "high": 64.0, "size": 64.0},
    ),
}
NUMBER = 20_000


def draw(
    schedule: Schedule, student_steps: int, per_segment: int, lognormal: bool
) -> SegmentTimes:
    keys = jax.random.split(jax.random.key(0), NUMBER)
    # Traced counts: a grid that is refined compiles once.
    program = jax.jit(
        lambda keys, steps, per: karras.draw_karras_times(
            keys, schedule, steps, per, lognormal
        )
    )
    return program(keys, jnp.int32(student_steps), jnp.int32(per_segment))


def noise_grid(student_steps: int, per_segment: int, shifts: dict) -> np.ndarray:
    """sigma / alpha at the grid points of every segment, [K, per_segment + 1]."""
    ends = np.exp(
        -reference.logsnr(np.arange(student_steps + 1) / student_steps, **shifts) / 2
    )
    roots = ends ** (1 / 7)
    share = np.arange(per_segment + 1) / per_segment
    return (roots[:-1, None] + share * np.diff(roots)[:, None]) ** 7


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("lognormal", [False, True])
@pytest.mark.parametrize(("student_steps", "per_segment"), [(1, 18), (3, 5), (8, 1)])
def test_times_lie_on_the_grid(
    x64: None, name: str, student_steps: int, per_segment: int, lognormal: bool
) -> None:
    schedule, shifts = SCHEDULES[name]
    times = draw(schedule, student_steps, per_segment, lognormal)
    grid = noise_grid(student_steps, per_segment, shifts)
    segment = np.rint(np.asarray(times.t_step) * student_steps).astype(int)
    points = np.exp(-np.asarray(schedule.logsnr(times.t)) / 2)
    index = np.abs(np.log(grid[segment] / points[:, None])).argmin(axis=1)
    np.testing.assert_allclose(points, grid[segment, index], rtol=1e-8)
    cleaner = np.exp(-np.asarray(schedule.logsnr(times.s)) / 2)
    np.testing.assert_allclose(cleaner, grid[segment, index - 1], rtol=1e-8)
    np.testing.assert_array_equal(times.is_first, index == 1)
    np.testing.assert_array_equal(times.s == times.t_step, times.is_first)
    assert np.all((times.t > times.s) & (times.t <= 1) & (times.s >= 0))
    counts = np.bincount(segment, minlength=student_steps)
    assert student_steps == 1 or scipy.stats.chisquare(counts).pvalue > 1e-3


def test_the_largest_time_is_one_exactly() -> None:
    times = draw(cosine(), 1, 4, False)
    assert float(times.t.max()) == 1.0
    assert float(times.s.min()) == 0.0


@pytest.mark.parametrize(("student_steps", "per_segment"), [(1, 40), (4, 10)])
def test_uniform_and_lognormal_shares(student_steps: int, per_segment: int) -> None:
    """Grid steps are equally likely, or as likely as the normal says."""
    grid = noise_grid(student_steps, per_segment, {})
    for lognormal in (False, True):
        times = draw(cosine(), student_steps, per_segment, lognormal)
        segment = np.rint(np.asarray(times.t_step) * student_steps).astype(int)
        points = -np.asarray(cosine().logsnr(times.t), np.float64) / 2
        relative = np.abs(np.log(grid[segment]) - points[:, None]).argmin(axis=1)
        cell = segment * per_segment + relative - 1
        counts = np.bincount(cell, minlength=student_steps * per_segment)
        below = scipy.stats.norm(-1.1, 2.0).cdf(np.log(grid))
        mass = np.diff(below, axis=1) if lognormal else np.ones((student_steps, 1))
        mass = np.broadcast_to(mass, (student_steps, per_segment))
        mass = mass / mass.sum(axis=1, keepdims=True) / student_steps
        expected = mass.ravel() * NUMBER
        likely = expected > 5
        rest = [counts[~likely].sum()], [expected[~likely].sum()]
        found = np.concatenate([counts[likely], rest[0]])
        wanted = np.concatenate([expected[likely], rest[1]])
        keep = wanted > 0
        test = scipy.stats.chisquare(
            found[keep], wanted[keep] * found.sum() / wanted.sum()
        )
        assert test.pvalue > 1e-3
