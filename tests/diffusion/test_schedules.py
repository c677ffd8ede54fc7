"""Schedules against the formula of the paper in numpy float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistep_cm.diffusion import schedules
from tests.diffusion import reference

TIMES = np.concatenate(
    [[0.0, 1.0, 1 / 1280, 1 - 1 / 1280, 1e-6, 1 - 1e-6], np.linspace(0, 1, 33)]
)
CASES = [
    (schedules.cosine(), {}),
    (schedules.cosine(-10.0, 12.0), {"logsnr_min": -10.0, "logsnr_max": 12.0}),
    (schedules.shifted_cosine(32, 128), {"low": 32, "high": 32, "size": 128}),
    (schedules.interpolated_cosine(32, 64, 64), {"low": 32, "high": 64, "size": 64}),
    (
        schedules.interpolated_cosine(32, 512, 512),
        {"low": 32, "high": 512, "size": 512},
    ),
]


@pytest.mark.parametrize(("schedule", "keywords"), CASES)
def test_formula_in_float64(
    x64: None, schedule: schedules.Schedule, keywords: dict[str, float]
) -> None:
    expected = reference.logsnr(TIMES, **keywords)
    found = schedule.logsnr(jnp.asarray(TIMES))
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(
        schedule.alpha(TIMES), reference.alpha(expected), rtol=1e-10
    )
    np.testing.assert_allclose(
        schedule.sigma(TIMES), reference.sigma(expected), rtol=1e-10
    )
    np.testing.assert_allclose(schedule.inverse(found), TIMES, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("schedule", "keywords"), CASES)
def test_formula_in_float32(
    schedule: schedules.Schedule, keywords: dict[str, float]
) -> None:
    times = TIMES.astype(np.float32)
    expected = reference.logsnr(times, **keywords)
    found = schedule.logsnr(jnp.asarray(times))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    np.testing.assert_allclose(alpha, reference.alpha(expected), rtol=1e-5)
    np.testing.assert_allclose(sigma, reference.sigma(expected), rtol=1e-5)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=0, atol=1e-6)
    np.testing.assert_allclose(schedule.inverse(found), times, rtol=0, atol=1e-6)


def test_ends_of_the_cosine_schedule(x64: None) -> None:
    schedule = schedules.cosine(-9.0, 11.0)
    ends = schedule.logsnr(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(ends, np.array([11.0, -9.0]), atol=1e-10)
    np.testing.assert_allclose(schedules.cosine().logsnr(0.5), 0.0, atol=1e-12)


@pytest.mark.parametrize(("schedule", "keywords"), CASES)
def test_inverse_is_clipped(
    schedule: schedules.Schedule, keywords: dict[str, float]
) -> None:
    times = schedule.inverse(jnp.array([40.0, -40.0]))
    np.testing.assert_allclose(times, [0.0, 1.0], rtol=0, atol=1e-7)
    assert jnp.all((times >= 0) & (times <= 1))


@given(
    low=st.floats(8, 128),
    ratio=st.floats(0.05, 20.0),
    size=st.floats(8, 1024),
)
def test_log_snr_decreases(low: float, ratio: float, size: float) -> None:
    schedule = schedules.interpolated_cosine(low, low * ratio, size)
    logsnr = schedule.logsnr(jnp.linspace(0.0, 1.0, 101))
    assert jnp.all(jnp.diff(logsnr) < 0)


@pytest.mark.parametrize("schedule", [case[0] for case in CASES])
def test_finite_with_derivatives_at_the_ends(schedule: schedules.Schedule) -> None:
    for t in (0.0, 1.0):
        for function in (schedule.logsnr, schedule.alpha, schedule.sigma):
            assert jnp.isfinite(function(t))
            assert jnp.isfinite(jax.grad(function)(t))


def test_low_precision_times_are_computed_in_float32() -> None:
    t = jnp.array([0.0, 0.25, 1.0], jnp.bfloat16)
    found = schedules.cosine().logsnr(t)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, reference.logsnr(t), atol=1e-5)
    assert schedules.cosine().logsnr(jnp.array([0, 1])).dtype == jnp.float32


@pytest.mark.parametrize("logsnr", [-200.0, -15.0, 0.0, 15.0, 200.0])
def test_alpha_and_sigma_keep_relative_precision(x64: None, logsnr: float) -> None:
    small = math.exp(-abs(logsnr) / 2) / math.sqrt(1 + math.exp(-abs(logsnr)))
    found = schedules.sigma_of(logsnr) if logsnr > 0 else schedules.alpha_of(logsnr)
    np.testing.assert_allclose(found, small, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: schedules.cosine(3.0, 3.0), "logsnr_min = 3.0 must be below"),
        (lambda: schedules.shifted_cosine(0, 64), "must be positive"),
        (lambda: schedules.shifted_cosine(64, -1), "must be positive"),
        (lambda: schedules.interpolated_cosine(8, 512, 512), "grow with t"),
        (lambda: schedules.cosine(-2000.0, 15.0), "must stay within 80"),
        (lambda: schedules.cosine(-15.0, math.inf), "must stay within 80"),
        (lambda: schedules.shifted_cosine(1e-20, 64), "must stay within 80"),
    ],
)
def test_bad_values(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=words):
        make()
