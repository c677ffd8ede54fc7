"""Samplers: counts of network calls, exact cases, and independent numpy loops."""

import itertools
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.diffusion import samplers
from multistep_cm.diffusion.parameterization import Conditioning, Denoiser, per_example
from multistep_cm.diffusion.samplers import Grid, Method, sample, time_grid
from multistep_cm.diffusion.schedules import Schedule, cosine, interpolated_cosine
from tests.diffusion import reference

SCHEDULE = cosine()
KEY = jax.random.key(0)
METHODS = get_args(Method)
Z_1 = np.random.default_rng(3).normal(size=(3, 4, 4, 1))


def constant(value: float) -> Denoiser:
    """The exact denoiser of data that is always `value`."""
    return lambda z_t, t, cond: jnp.full_like(z_t, value)


def of_normal(mean: float, deviation: float) -> Denoiser:
    """The exact denoiser of x ~ N(mean, deviation^2) in every element."""

    def denoise(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        alpha = per_example(SCHEDULE.alpha(t), z_t)
        sigma = per_example(SCHEDULE.sigma(t), z_t)
        variance = (alpha * deviation) ** 2 + sigma**2
        return mean + alpha * deviation**2 / variance * (z_t - alpha * mean)

    return denoise


def numpy_normal(z: reference.Array, t: float, mean: float, dev: float) -> Any:
    alpha = reference.alpha(reference.logsnr(t))
    sigma = reference.sigma(reference.logsnr(t))
    gain = alpha * dev**2 / ((alpha * dev) ** 2 + sigma**2)
    return mean + gain * (z - alpha * mean)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_steps", [1, 5])
def test_network_calls_are_counted(method: Method, num_steps: int) -> None:
    times: list[float] = []

    def denoise(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        jax.debug.callback(lambda t: times.append(float(t[0])), t)
        return z_t

    z_0 = jax.jit(lambda z: sample(denoise, SCHEDULE, z, num_steps, method, key=KEY))(
        jnp.ones((2, 3))
    )
    jax.block_until_ready(z_0)
    jax.effects_barrier()
    expected = 2 * num_steps - 1 if method == "heun" else num_steps
    assert len(times) == expected == samplers.network_calls(method, num_steps)
    assert min(times) > 0  # t = 0 is never asked for
    grid = [1 - i / num_steps for i in range(num_steps)]
    np.testing.assert_allclose(sorted(set(times), reverse=True), grid, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("num_steps", "grid"),
    [(1, "uniform"), (2, "uniform"), (8, "uniform"), (32, "uniform"), (8, "karras")],
)
def test_constant_data_comes_back(
    x64: None, method: Method, num_steps: int, grid: Grid
) -> None:
    """A public aDDIM returns 1.046, 1.610 and 1.683 at 2, 8 and 32 steps here."""
    # eta ||x - x_hat||^2 is 0 for constant data.
    z_0 = sample(
        constant(1.7),
        SCHEDULE,
        jnp.asarray(Z_1),
        num_steps,
        method,
        key=KEY,
        x_variance=lambda t, logsnr: 0.0,
        grid=grid,
    )
    alpha, sigma = reference.alpha(15.0), reference.sigma(15.0)
    noise = (z_0 - alpha * 1.7) / sigma
    if method == "ancestral":  # the last step scales fresh noise
        assert jnp.all(jnp.abs(noise) < 5)
    else:
        end = reference.logsnr(1.0)
        e_hat = (Z_1 - reference.alpha(end) * 1.7) / reference.sigma(end)
        np.testing.assert_allclose(noise, e_hat, rtol=0, atol=1e-8)
    assert abs(float(z_0.mean()) - 1.7) < 1e-3


@pytest.mark.parametrize("num_steps", [2, 8, 32])
def test_constant_data_with_the_analytic_variance(num_steps: int) -> None:
    """The noise is stretched, in the mean it stays 1.7."""
    z_1 = jax.random.normal(KEY, (64, 16, 16, 1))
    z_0 = sample(constant(1.7), SCHEDULE, z_1, num_steps, "addim")
    assert abs(float(z_0.mean()) - 1.7) < 0.01


@pytest.mark.parametrize("grid", get_args(Grid))
@pytest.mark.parametrize("num_steps", [1, 6])
def test_deterministic_samplers_are_their_numpy_loops(
    x64: None, num_steps: int, grid: Grid
) -> None:
    mean, deviation = 0.4, 0.6
    times = np.asarray(time_grid(SCHEDULE, num_steps, grid))
    ddim = addim = heun = Z_1
    for t, s in itertools.pairwise(times):
        lt, ls = reference.logsnr(t), reference.logsnr(s)
        ddim = reference.ddim(numpy_normal(ddim, t, mean, deviation), ddim, lt, ls)
        x_var = 0.1 / (2 + np.exp(lt))
        x_hat = numpy_normal(addim, t, mean, deviation)
        addim = reference.addim(x_hat, addim, lt, ls, x_var)
        x_hat = numpy_normal(heun, t, mean, deviation)
        euler = reference.ddim(x_hat, heun, lt, ls)
        if s > 0:
            x_s = numpy_normal(euler, s, mean, deviation)
            e_t = (heun - reference.alpha(lt) * x_hat) / reference.sigma(lt)
            e_s = (euler - reference.alpha(ls) * x_s) / reference.sigma(ls)
            step = np.exp(-ls / 2) - np.exp(-lt / 2)
            y = heun / reference.alpha(lt) + step * (e_t + e_s) / 2
            euler = reference.alpha(ls) * y
        heun = euler
    denoiser = of_normal(mean, deviation)
    results: list[tuple[Method, Any]] = [
        ("ddim", ddim),
        ("addim", addim),
        ("heun", heun),
    ]
    for method, expected in results:
        found = sample(
            denoiser, SCHEDULE, jnp.asarray(Z_1), num_steps, method, grid=grid
        )
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_many_steps_reach_the_data(x64: None) -> None:
    """Every sampler of N(0.4, 0.6^2) has its mean and variance in the limit."""
    z_1 = jnp.asarray(np.random.default_rng(4).normal(size=(4, 5000)))
    for method in METHODS:
        z_0 = sample(
            of_normal(0.4, 0.6), SCHEDULE, z_1, 200, method, key=jax.random.key(7)
        )
        # Four standard errors of 20,000 draws, and DDIM's own bias of 0.2 %.
        assert abs(float(z_0.mean()) - 0.4) < 0.02, method
        assert abs(float(z_0.std()) - 0.6) < 0.015, method


def test_ancestral_draws_fresh_noise() -> None:
    z_1 = jnp.asarray(Z_1, jnp.float32)

    def run(seed: int) -> jax.Array:
        key = jax.random.key(seed)
        return sample(of_normal(0.0, 1.0), SCHEDULE, z_1, 4, "ancestral", key=key)

    np.testing.assert_array_equal(run(0), run(0))
    assert jnp.abs(run(0) - run(1)).max() > 0.1


def test_ancestral_noise_of_an_example_is_its_keys_alone() -> None:
    """With a key for each example, it is what it would be without the others."""
    z_1 = jnp.asarray(Z_1, jnp.float32)[:3]
    keys = jax.random.split(jax.random.key(0), 3)

    def run(z_1: jax.Array, key: jax.Array) -> jax.Array:
        return sample(of_normal(0.0, 1.0), SCHEDULE, z_1, 4, "ancestral", key=key)

    together = run(z_1, keys)
    for i in range(3):
        alone = run(z_1[i : i + 1], keys[i : i + 1])
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-6)
    swapped = run(z_1, keys[jnp.array([1, 0, 2])])
    np.testing.assert_allclose(swapped[2], together[2], rtol=1e-6)
    assert jnp.abs(swapped[:2] - together[:2]).min() > 1e-3


def test_uniform_grid() -> None:
    for num_steps in (1, 4, 7):
        expected = [1 - i / num_steps for i in range(num_steps + 1)]
        np.testing.assert_allclose(time_grid(SCHEDULE, num_steps), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "schedule", [cosine(), cosine(-10, 10), interpolated_cosine(32, 64, 64)]
)
@pytest.mark.parametrize("num_steps", [1, 18, 512])
def test_karras_grid(schedule: Schedule, num_steps: int) -> None:
    times = time_grid(schedule, num_steps, "karras")
    assert times.shape == (num_steps + 1,)
    assert times[0] == 1 and times[-1] == 0
    assert jnp.all(jnp.diff(times) < 0)
    # Equation 5 of Karras et al., with sigma there = sigma / alpha here.
    low, high = (float(jnp.exp(-schedule.logsnr(t) / 2)) for t in (0.0, 1.0))
    roots = np.linspace(high ** (1 / 7), low ** (1 / 7), num_steps + 1)
    found = np.exp(-np.asarray(schedule.logsnr(times), np.float64) / 2)
    np.testing.assert_allclose(found, roots**7, rtol=1e-2)


def test_conditioning_and_times_reach_the_denoiser() -> None:
    def denoise(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        assert t.shape == (3,)
        return jnp.ones_like(z_t) * cond["label"].reshape(-1, 1, 1, 1)

    cond = {"label": jnp.array([1.0, 2.0, 3.0])}
    z_0 = sample(denoise, SCHEDULE, jnp.asarray(Z_1, jnp.float32), 2, cond=cond)
    np.testing.assert_allclose(z_0.mean(axis=(1, 2, 3)), [1, 2, 3], atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_low_precision_stays_finite(method: Method) -> None:
    z_1 = jnp.asarray(Z_1, jnp.bfloat16)
    z_0 = sample(of_normal(0.0, 1.0), SCHEDULE, z_1, 3, method, key=KEY)
    assert z_0.dtype == jnp.bfloat16
    assert jnp.all(jnp.isfinite(z_0))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"num_steps": 0}, "num_steps is 0, expected at least 1"),
        ({"num_steps": 2, "method": "euler"}, "method is 'euler', expected one of"),
        ({"num_steps": 2, "method": "ancestral"}, "pass key"),
        ({"num_steps": 2, "grid": "log"}, "grid is 'log', expected 'uniform'"),
    ],
)
def test_bad_values(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sample(constant(0.0), SCHEDULE, jnp.zeros((1, 1)), **keywords)
