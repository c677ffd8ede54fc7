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

SCHEDULE = cosine()


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
    x = mixtures.draw(mixture, jax.random.key(0), number)
    eps = jax.random.normal(jax.random.key(1), x.shape, x.dtype)
    logsnr_t, logsnr_s = SCHEDULE.logsnr(t), SCHEDULE.logsnr(s)
    z_t = add_noise(x, eps, logsnr_t)
    exact = add_noise(x, eps, logsnr_s)  # one exact draw of z_s given z_t
    x_hat = mixtures.posterior_mean(mixture, z_t, logsnr_t)
    of_ddim = ddim.ddim_step(x_hat, z_t, logsnr_t, logsnr_s)
    ratio = SCHEDULE.sigma(s) / SCHEDULE.sigma(t)
    coefficient = SCHEDULE.alpha(s) - SCHEDULE.alpha(t) * ratio
    lost = coefficient**2 * mixtures.posterior_trace(mixture, z_t, logsnr_t)
    gap = (exact**2).sum(1) - (of_ddim**2).sum(1) - lost
    error = float(gap.std()) / number**0.5
    assert abs(float(gap.mean())) < 4 * error
    assert float(lost.mean()) > 10 * error  # so the test can tell
