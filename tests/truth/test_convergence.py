"""Orders of convergence of the samplers on exact denoisers, and the norm identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.diffusion import ddim
from multistep_cm.diffusion.parameterization import add_noise
from multistep_cm.diffusion.samplers import Method, sample
from multistep_cm.diffusion.schedules import cosine
from multistep_cm.truth import flows, mixtures, presets
from tests.diffusion import reference

SCHEDULE = cosine()

# One program each: operation by operation, XLA compiles every one of them.
posterior_mean = jax.jit(mixtures.posterior_mean)
posterior_trace = jax.jit(mixtures.posterior_trace)
draw = jax.jit(mixtures.draw, static_argnums=2)


def slope(counts: tuple[int, ...], errors: list[float]) -> float:
    """The order: minus the slope of log error against log number of steps."""
    return float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("heun", 2)])
def test_order_of_convergence(x64: None, method: Method, order: int) -> None:
    mixture = presets.two_normals("float64")
    exact = mixtures.denoiser(mixture, SCHEDULE)
    z_1 = jnp.asarray(np.random.default_rng(0).normal(size=(64, 1)))
    z_0 = jax.jit(flows.transport(mixture))(z_1, -15.0, 15.0)
    counts = (128, 256, 512)
    errors = [
        float(jnp.sqrt(jnp.mean((sample(exact, SCHEDULE, z_1, n, method) - z_0) ** 2)))
        for n in counts
    ]
    assert abs(slope(counts, errors) - order) < 0.15
    assert errors[-1] < 1e-2 / 4**order


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("heun", 2)])
def test_order_of_convergence_on_the_ring(
    x64: None, method: Method, order: int
) -> None:
    """In two dimensions, against Runge-Kutta, whose error does not count."""
    mixture = presets.ring("float64")
    exact = mixtures.denoiser(mixture, SCHEDULE)
    z_1 = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)))
    end, start = SCHEDULE.logsnr(0.0), SCHEDULE.logsnr(1.0)
    solution = jax.jit(
        lambda z: flows.integrate(
            lambda z, logsnr: mixtures.posterior_mean(mixture, z, logsnr),
            z,
            start,
            end,
            1024,
        )
    )(z_1)
    counts = (256, 512, 1024)
    errors = []
    for n in counts:
        difference = sample(exact, SCHEDULE, z_1, n, method) - solution.z_s
        errors.append(float(jnp.sqrt(jnp.mean(difference**2))))
    assert float(solution.error.max()) < 1e-2 * errors[-1]
    assert abs(slope(counts, errors) - order) < 0.15


RING = np.stack([np.cos(np.pi * np.arange(8) / 4), np.sin(np.pi * np.arange(8) / 4)], 1)


def numpy_ring(z: reference.Array, logsnr: reference.Array) -> reference.Array:
    """E[x | z_t] of the ring in numpy: eight modes of deviation 0.1."""
    alpha, noise = reference.alpha(logsnr), reference.sigma(logsnr) ** 2
    variance = 0.01 * alpha**2 + noise
    delta = z[:, None] - alpha * RING
    joint = np.exp(-0.5 * (delta**2).sum(2) / variance)
    share = joint / joint.sum(1, keepdims=True)
    means = RING + 0.01 * alpha / variance * delta
    return np.einsum("bk,bkd->bd", share, means)


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.75), (0.7, 0.4)])
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("float64", 1e-10)])
def test_one_step_with_the_exact_denoiser(
    x64: None, dtype: str, limit: float, t: float, s: float
) -> None:
    """DDIM, its inverse, aDDIM and Heun, with every number made in numpy too."""
    mixture = presets.ring(dtype)
    z = np.random.default_rng(2).normal(size=(16, 2))
    z_t = jnp.asarray(z, dtype)
    # The same numbers for both sides, so that only the step can differ.
    logsnr_t, logsnr_s = (np.asarray(reference.logsnr(v), dtype) for v in (t, s))
    lt = np.asarray(logsnr_t, np.float64)
    ls = np.asarray(logsnr_s, np.float64)
    x = numpy_ring(z, lt)
    euler = reference.ddim(x, z, lt, ls)
    x_var = 0.1 / (2 + np.exp(lt))
    of_addim = reference.addim(x, z, lt, ls, x_var)
    slope_t = (z - reference.alpha(lt) * x) / reference.sigma(lt)
    slope_s = (euler - reference.alpha(ls) * numpy_ring(euler, ls)) / reference.sigma(
        ls
    )
    distance = np.exp(-ls / 2) - np.exp(-lt / 2)
    y_s = z / reference.alpha(lt) + distance * (slope_t + slope_s) / 2
    of_heun = reference.alpha(ls) * y_s

    x_hat = posterior_mean(mixture, z_t, logsnr_t)
    z_s = ddim.ddim_step(x_hat, z_t, logsnr_t, logsnr_s)
    back = ddim.inverse_ddim(z_s, z_t, logsnr_t, logsnr_s)
    variance = ddim.x_variance_analytic(logsnr_t)
    addim = ddim.addim_step(x_hat, z_t, logsnr_t, logsnr_s, variance)
    x_hat_s = posterior_mean(mixture, z_s, logsnr_s)
    effective = ddim.heun_effective_x(x_hat, x_hat_s, logsnr_t, logsnr_s)
    heun = ddim.ddim_step(effective, z_t, logsnr_t, logsnr_s)
    pairs = [(x_hat, x), (z_s, euler), (back, x), (addim, of_addim), (heun, of_heun)]
    for found, expected in pairs:
        assert found.dtype == dtype
        scale = np.maximum(1, np.abs(expected))
        np.testing.assert_array_less(np.abs(found - expected) / scale, limit)


def test_addim_becomes_ddim(x64: None) -> None:
    """Their difference vanishes, but like steps^-1/2 and not like DDIM's own error.

    Where the data has a density, e_hat = -sigma score goes to 0 with sigma, and
    sqrt(sigma_s^2 + d z_var / ||e_hat||^2) e_hat then moves by sqrt(z_var) along
    e_hat: of order 1 / steps in each of the last steps, of which about
    sqrt(steps) are so.
    """
    mixture = presets.low_rank_64("float64")
    exact = mixtures.denoiser(mixture, SCHEDULE)
    z_1 = jnp.asarray(np.random.default_rng(0).normal(size=(8, 64)))
    counts = (64, 256, 1024)
    differences = []
    for n in counts:
        addim = sample(exact, SCHEDULE, z_1, n, "addim")
        of_ddim = sample(exact, SCHEDULE, z_1, n, "ddim")
        differences.append(float(jnp.sqrt(jnp.mean((addim - of_ddim) ** 2))))
    assert 0.45 < slope(counts, differences) < 0.75
    assert differences[-1] < 3e-3


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.5), (0.6, 0.4), (0.3, 0.0)])
@pytest.mark.parametrize(
    "name", ["ring", pytest.param("low_rank_64", marks=pytest.mark.slow)]
)
def test_norm_identity(x64: None, name: str, t: float, s: float) -> None:
    """E||z_s||^2 of an exact sampler is that of DDIM plus
    (alpha_s - alpha_t sigma_s / sigma_t)^2 tr Var[x | z_t] (the paper's ground for
    aDDIM)."""
    number = 4000
    mixture = presets.PRESETS[name]("float64")
    x = draw(mixture, jax.random.key(0), number)
    eps = jax.random.normal(jax.random.key(1), x.shape, x.dtype)
    logsnr_t, logsnr_s = SCHEDULE.logsnr(t), SCHEDULE.logsnr(s)
    z_t = add_noise(x, eps, logsnr_t)
    exact = add_noise(x, eps, logsnr_s)  # one exact draw of z_s given z_t
    x_hat = posterior_mean(mixture, z_t, logsnr_t)
    of_ddim = ddim.ddim_step(x_hat, z_t, logsnr_t, logsnr_s)
    ratio = SCHEDULE.sigma(s) / SCHEDULE.sigma(t)
    coefficient = SCHEDULE.alpha(s) - SCHEDULE.alpha(t) * ratio
    lost = coefficient**2 * posterior_trace(mixture, z_t, logsnr_t)
    gap = (exact**2).sum(1) - (of_ddim**2).sum(1) - lost
    error = float(gap.std()) / number**0.5
    assert abs(float(gap.mean())) < 4 * error
    assert float(lost.mean()) > 10 * error  # so the test can tell
