"""Exact flows against closed forms, each other, and the samplers."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from multistep_cm.diffusion.samplers import sample
from multistep_cm.diffusion.schedules import cosine
from multistep_cm.truth import flows, making, mixtures, presets
from tests.diffusion import reference

SCHEDULE = cosine()
Z = np.random.default_rng(1).normal(size=(6, 3))


@partial(jax.jit, static_argnums=4)
def integrate(
    mixture: mixtures.Mixture, z: jax.Array, start: Any, end: Any, num_steps: int
) -> flows.Solution:
    return flows.integrate(
        lambda z, logsnr: mixtures.posterior_mean(mixture, z, logsnr),
        z,
        start,
        end,
        num_steps,
    )


def end(t: float) -> float:
    return float(reference.logsnr(t))


def test_one_normal_scales(x64: None) -> None:
    """Of N(m, s^2) the flow keeps (z - alpha m) / sqrt(alpha^2 s^2 + sigma^2)."""
    flow = jax.jit(flows.transport(making.isotropic([1.0], [[0.4]], 0.3, "float64")))
    for t, s in [(1.0, 0.0), (0.7, 0.2), (0.3, 0.29), (0.2, 0.9)]:
        (a, b), (c, d) = (
            (reference.alpha(end(v)), reference.sigma(end(v))) for v in (t, s)
        )
        ratio = np.sqrt((0.3 * c) ** 2 + d**2) / np.sqrt((0.3 * a) ** 2 + b**2)
        expected = 0.4 * c + ratio * (Z - 0.4 * a)
        found = flow(jnp.asarray(Z), end(t), end(s))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_product_flow_and_denoiser(x64: None) -> None:
    """Coordinates do not see each other: columns alone are the columns together."""
    mixture = presets.two_normals("float64")
    flow, together = jax.jit(flows.transport(mixture)), jnp.asarray(Z)
    exact = jax.jit(mixtures.product_denoiser(mixture, SCHEDULE))
    alone = jax.jit(mixtures.denoiser(mixture, SCHEDULE))
    t = jnp.linspace(0.1, 1.0, 6)
    z_s, x_hat = flow(together, SCHEDULE.logsnr(t), 2.0), exact(together, t, {})
    for column in range(3):
        part = together[:, column : column + 1]
        one = flow(part, SCHEDULE.logsnr(t), 2.0)
        np.testing.assert_allclose(z_s[:, column : column + 1], one, atol=1e-12)
        of_one = alone(part, t, {})
        np.testing.assert_allclose(x_hat[:, column : column + 1], of_one, atol=1e-12)


def test_transport_keeps_quantiles(x64: None) -> None:
    mixture = making.isotropic([0.3, 0.7], [[-1.0], [0.5]], [0.2, 0.4], "float64")

    def distribution(z: object, logsnr: float) -> np.ndarray:
        alpha, sigma = reference.alpha(logsnr), reference.sigma(logsnr)
        below = [
            w * scipy.stats.norm.cdf(z, alpha * m, np.hypot(alpha * s, sigma))
            for w, m, s in [(0.3, -1, 0.2), (0.7, 0.5, 0.4)]
        ]
        return np.sum(below, axis=0)

    z_0 = jax.jit(flows.transport(mixture))(jnp.asarray(Z), -15.0, 15.0)
    expected = distribution(Z, -15.0)
    np.testing.assert_allclose(distribution(z_0, 15.0), expected, rtol=0, atol=1e-10)


def test_transport_there_and_back(x64: None) -> None:
    flow = jax.jit(flows.transport(presets.two_normals("float64")))
    logsnr_t = jnp.linspace(-10.0, 5.0, 6)
    z = jnp.asarray(4 * Z)  # far into the tails
    back = flow(flow(z, logsnr_t, logsnr_t + 3), logsnr_t + 3, logsnr_t)
    # Between the modes the flow is steep, and its inverse loses digits.
    np.testing.assert_allclose(back, z, rtol=0, atol=1e-6)


def test_runge_kutta_agrees_and_knows_its_error(x64: None) -> None:
    mixture = presets.two_normals("float64")
    z = jnp.asarray(Z[:, :1])
    exact = jax.jit(flows.transport(mixture))(z, -15.0, 15.0)

    def error(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
        solution = integrate(mixture, z, -15.0, 15.0, num_steps)
        return np.abs(solution.z_s - exact).max(axis=1), np.asarray(solution.error)

    (first, _), (second, stated) = error(256), error(1024)
    assert second.max() < 1e-6
    order = np.log2(first.max() / second.max()) / 2
    assert 3.5 < order < 5
    assert np.all(second < 3 * stated + 1e-10)


def test_runge_kutta_of_one_normal_in_many_dimensions(x64: None) -> None:
    covariance = np.diag([0.01, 1.0, 0.3])
    mixture = making.full([1.0], [[0.1, 0.0, -0.4]], [covariance], "float64")
    logsnr_t, logsnr_s = jnp.linspace(-15.0, -2.0, 6), jnp.linspace(0.0, 15.0, 6)
    solution = integrate(mixture, jnp.asarray(Z), logsnr_t, logsnr_s, 512)
    a, b = (reference.alpha(v)[:, None] for v in (logsnr_t, logsnr_s))
    variance = np.diag(covariance)
    wide, narrow = (np.sqrt(v**2 * variance + 1 - v**2) for v in (a, b))
    mean = np.array([0.1, 0.0, -0.4])
    expected = b * mean + narrow / wide * (Z - a * mean)
    np.testing.assert_allclose(solution.z_s, expected, rtol=0, atol=1e-8)
    assert solution.error.shape == (6,)


@pytest.mark.parametrize("student_steps", [1, 2, 3, 8])
def test_consistency_function_samples_the_flow(x64: None, student_steps: int) -> None:
    """Algorithm 2 with the exact function lands on the flow's end for any K."""
    mixture = presets.two_normals("float64")
    flow = flows.transport(mixture)
    exact = mixtures.denoiser(mixture, SCHEDULE)
    function = flows.consistency_function(flow, SCHEDULE, student_steps, exact)
    z_1 = jnp.asarray(Z[:, :1])
    z_0 = jax.jit(lambda z: sample(function, SCHEDULE, z, student_steps))(z_1)
    expected = jax.jit(flow)(z_1, -15.0, 15.0)
    np.testing.assert_allclose(z_0, expected, rtol=0, atol=1e-8)


def test_consistency_function_of_many_segments_is_the_denoiser(x64: None) -> None:
    mixture = presets.two_normals("float64")
    exact = mixtures.denoiser(mixture, SCHEDULE)
    z, t = jnp.asarray(Z[:, :1]), jnp.array([1.0, 0.8, 0.6, 0.5, 0.4, 0.0])
    flow = flows.transport(mixture)

    @partial(jax.jit, static_argnums=0)
    def difference(k: int) -> jax.Array:
        function = flows.consistency_function(flow, SCHEDULE, k, exact)
        return jnp.abs(function(z, t, {}) - exact(z, t, {})).max()

    error = [float(difference(k)) for k in (1, 20, 200)]
    assert error[0] > 0.1 > error[1] > 5 * error[2]
    assert error[2] < 0.02


@pytest.mark.parametrize("student_steps", [1, 2, 3, 7, 48])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_segment_start(x64: None, student_steps: int, dtype: type) -> None:
    grid = np.arange(1, student_steps + 1, dtype=dtype) / dtype(student_steps)
    for bits in (-1, 0, 1):  # a grid time ends its segment, a bit off or not
        t = jnp.asarray(np.nextafter(grid, grid + bits, dtype=dtype) if bits else grid)
        start = flows.segment_start(t, student_steps)
        expected = (np.arange(student_steps)) / student_steps
        np.testing.assert_allclose(start, expected, rtol=1e-6, atol=1e-9)
    inside = (np.arange(student_steps) + 0.5) / student_steps
    found = flows.segment_start(jnp.asarray(inside, dtype), student_steps)
    np.testing.assert_allclose(found, inside - 0.5 / student_steps, atol=1e-6)
    assert float(flows.segment_start(jnp.zeros((), dtype), student_steps)) == 0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="has 2 dimensions, the transport"):
        flows.transport(presets.ring())
    with pytest.raises(ValueError, match="num_steps is 3, expected an even"):
        flows.integrate(lambda z, logsnr: z, jnp.zeros((1, 1)), 0.0, 1.0, 3)
    with pytest.raises(ValueError, match="student_steps is 0"):
        flows.consistency_function(lambda z, t, s: z, SCHEDULE, 0, lambda z, t, cond: z)
