"""Segments, annealing and the draws of algorithm 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from multistep_cm.diffusion import timesteps

draw = jax.jit(timesteps.draw_segment_times)


def keys(number: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), number)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 64.0), (50_000, (64 * 1280) ** 0.5), (100_000, 1280.0), (300_000, 1280.0)],
)
def test_annealing(step: int, expected: float) -> None:
    found = timesteps.teacher_steps(jnp.int32(step), 64, 1280, 100_000)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_annealing_is_geometric() -> None:
    steps = jnp.arange(0, 1001, 100)
    found = jax.vmap(lambda i: timesteps.teacher_steps(i, 8, 64, 1000))(steps)
    np.testing.assert_allclose(found[1:] / found[:-1], 8**0.1, rtol=1e-5)


@pytest.mark.parametrize(("start", "end"), [(2, 150), (2, 200), (10, 20)])
def test_square_root_curriculum(start: int, end: int) -> None:
    """N(k) of consistency models, less one: they count points, we count steps."""
    anneal = 1000
    steps = np.arange(0, anneal + 1, 7)
    grow = steps / anneal * ((end + 1) ** 2 - start**2)
    points = np.ceil(np.sqrt(grow + start**2) - 1) + 1
    found = jax.vmap(
        lambda i: timesteps.teacher_steps(i, start, end, anneal, "square_root")
    )(steps)
    # Float32 may put a value on the other side of a whole number.
    assert np.mean(np.asarray(found) == points - 1) > 0.97
    assert np.abs(found - (points - 1)).max() <= 1
    last = timesteps.teacher_steps(10 * anneal, start, end, anneal, "square_root")
    assert float(last) == end


def test_doubling_curriculum() -> None:
    """min(s_0 2^floor(k / K'), s_1) with K' = K / (log2(s_1 / s_0) + 1)."""
    start, end, anneal = 10, 1280, 8000
    steps = np.arange(0, anneal + 500, 37)
    doublings = steps // (anneal / (np.log2(end // start) + 1))
    expected = np.minimum(start * 2.0**doublings, end)
    found = jax.vmap(
        lambda i: timesteps.teacher_steps(i, start, end, anneal, "doubling")
    )(steps)
    np.testing.assert_array_equal(found, expected)
    assert sorted(set(expected)) == [10 * 2**i for i in range(8)]


def test_unknown_curriculum() -> None:
    with pytest.raises(ValueError, match="'steps', expected one of"):
        timesteps.teacher_steps(0, 1, 2, 3, "steps")  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [0, 1, 10**6])
def test_no_annealing_is_the_end_value(step: int) -> None:
    np.testing.assert_allclose(timesteps.teacher_steps(step, 8, 256, 0), 256, rtol=1e-6)


@pytest.mark.parametrize(
    ("teacher_steps", "student_steps", "expected"),
    [
        (64, 4, 16),
        (64, 1, 64),
        (64, 64, 1),
        (1280, 7, 183),  # 182.86: T is then 1281
        (100, 3, 33),  # T is 99
        (3, 8, 1),  # never none
    ],
)
def test_steps_per_segment(
    teacher_steps: int, student_steps: int, expected: int
) -> None:
    found = timesteps.steps_per_segment(float(teacher_steps), student_steps)
    assert found.dtype == jnp.int32
    assert int(found) == expected
    traced = jax.jit(timesteps.steps_per_segment, static_argnums=1)
    assert int(traced(jnp.float32(teacher_steps), student_steps)) == expected


@given(student_steps=st.integers(1, 16), per_segment=st.integers(1, 160))
def test_times_lie_on_the_grid(student_steps: int, per_segment: int) -> None:
    times = draw(keys(64), student_steps, jnp.int32(per_segment))
    total = student_steps * per_segment
    t, s, t_step = (
        np.asarray(value, np.float64) for value in (times.t, times.s, times.t_step)
    )
    index = np.rint(t * total)
    np.testing.assert_allclose(t, index / total, rtol=2e-7)
    np.testing.assert_allclose(s, (index - 1) / total, rtol=2e-7)
    segment = np.ceil(index / per_segment) - 1
    np.testing.assert_allclose(t_step, segment / student_steps, rtol=2e-7)
    assert np.all((t > s) & (t <= 1) & (s >= t_step) & (t_step >= 0))
    relative = index - segment * per_segment
    np.testing.assert_array_equal(times.is_first, relative == 1)


@pytest.mark.parametrize(("student_steps", "per_segment"), [(1, 7), (3, 43), (7, 183)])
def test_s_is_t_step_exactly_on_the_first_sub_step(
    student_steps: int, per_segment: int
) -> None:
    times = draw(keys(20_000), student_steps, jnp.int32(per_segment))
    np.testing.assert_array_equal(times.s == times.t_step, times.is_first)
    assert bool(times.is_first.any())
    assert bool(jnp.all(times.s < times.t))


def test_draws_are_uniform() -> None:
    student_steps, per_segment, number = 3, 5, 30_000
    times = draw(keys(number), student_steps, jnp.int32(per_segment))
    total = student_steps * per_segment
    index = np.rint(np.asarray(times.t) * total).astype(int)
    counts = np.bincount(index, minlength=total + 1)
    assert counts[0] == 0
    assert scipy.stats.chisquare(counts[1:]).pvalue > 1e-3
    # Independent draws: one key a batch would repeat a time in whole rows.
    other = draw(keys(number, seed=1), student_steps, jnp.int32(per_segment))
    pairs = np.histogram2d(times.t, other.t, bins=total)[0]
    assert scipy.stats.chi2_contingency(pairs).pvalue > 1e-3


def test_one_step_per_segment() -> None:
    times = draw(keys(100), 4, jnp.int32(1))
    assert bool(times.is_first.all())
    np.testing.assert_array_equal(times.s, times.t_step)
    np.testing.assert_allclose(times.t, times.t_step + 0.25)


def test_a_changing_grid_compiles_once() -> None:
    traces = []

    @jax.jit
    def annealed(step: jax.Array) -> timesteps.SegmentTimes:
        traces.append(step)
        count = timesteps.teacher_steps(step, 8, 64, 10)
        per_segment = timesteps.steps_per_segment(count, 4)
        return timesteps.draw_segment_times(keys(4000), 4, per_segment)

    smallest = [float(annealed(jnp.int32(step)).t.min()) for step in (0, 5, 10, 99)]
    np.testing.assert_allclose(smallest, [1 / 8, 1 / 24, 1 / 64, 1 / 64], rtol=1e-6)
    assert len(traces) == 1


def test_draws_do_not_depend_on_the_cut() -> None:
    every = keys(8)
    like = jnp.zeros((8, 3, 2))
    whole = (
        timesteps.draw_segment_times(every, 4, 16).t,
        timesteps.draw_noise(every, like),
        timesteps.draw_uniform_times(every),
    )
    part = (
        timesteps.draw_segment_times(every[3:5], 4, 16).t,
        timesteps.draw_noise(every[3:5], like[3:5]),
        timesteps.draw_uniform_times(every[3:5]),
    )
    for all_of_it, some in zip(whole, part, strict=True):
        np.testing.assert_array_equal(all_of_it[3:5], some)


def test_noise_is_standard_normal() -> None:
    noise = timesteps.draw_noise(keys(500), jnp.zeros((500, 5, 4)))
    assert scipy.stats.kstest(np.ravel(noise), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise.reshape(500, -1)[:, :2].T)[0, 1]) < 0.2
    low = timesteps.draw_noise(keys(2), jnp.zeros((2, 3), jnp.bfloat16))
    assert low.dtype == jnp.bfloat16


def test_uniform_times() -> None:
    t = timesteps.draw_uniform_times(keys(2000))
    assert t.dtype == jnp.float32
    assert scipy.stats.kstest(np.asarray(t), "uniform").pvalue > 1e-3


def test_float64_where_enabled(x64: None) -> None:
    times = timesteps.draw_segment_times(keys(100), 3, 7)
    assert times.t.dtype == times.s.dtype == times.t_step.dtype == jnp.float64
    index = np.rint(np.asarray(times.t) * 21)
    np.testing.assert_allclose(times.t, index / 21, rtol=1e-15)
