"""Mixtures against scipy, quadrature, automatic derivatives and draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from multistep_cm.diffusion.parameterization import add_noise
from multistep_cm.diffusion.schedules import cosine
from multistep_cm.truth import making, mixtures
from tests.diffusion import reference

RANDOM = np.random.default_rng(0)
WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = RANDOM.normal(size=(3, 4))
FACTORS = RANDOM.normal(size=(3, 4, 2))
COVARIANCES = FACTORS @ FACTORS.swapaxes(1, 2) + 0.1 * np.eye(4)
POINTS = RANDOM.normal(size=(5, 4))
LOGSNR = np.array([-6.0, -1.0, 0.0, 2.0, 7.0])

# One program each: operation by operation, XLA compiles every one of them.
log_density = jax.jit(mixtures.log_density)
noisy_log_density = jax.jit(mixtures.noisy_log_density)
posterior_mean = jax.jit(mixtures.posterior_mean)
posterior_covariance = jax.jit(mixtures.posterior_covariance)
posterior_trace = jax.jit(mixtures.posterior_trace)
score_of = jax.jit(mixtures.score)
moments = jax.jit(mixtures.moments)
draw = jax.jit(mixtures.draw, static_argnums=2)


def both(dtype: str = "float64") -> list[mixtures.Mixture]:
    """One distribution, by full and by low-rank covariances."""
    return [
        making.full(WEIGHTS, MEANS, COVARIANCES, dtype),
        making.low_rank(WEIGHTS, MEANS, FACTORS, 0.1, dtype),
    ]


def noisy(index: int) -> list:
    """scipy's components of q(z_t) at LOGSNR[index]."""
    alpha, sigma = reference.alpha(LOGSNR[index]), reference.sigma(LOGSNR[index])
    return [
        scipy.stats.multivariate_normal(
            alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(4)
        )
        for mean, covariance in zip(MEANS, COVARIANCES, strict=True)
    ]


def test_log_density_is_scipys(x64: None) -> None:
    components = [
        scipy.stats.multivariate_normal(m, c)
        for m, c in zip(MEANS, COVARIANCES, strict=True)
    ]
    density = sum(w * c.pdf(POINTS) for w, c in zip(WEIGHTS, components, strict=True))
    noisy_density = [
        sum(w * c.pdf(z) for w, c in zip(WEIGHTS, noisy(i), strict=True))
        for i, z in enumerate(POINTS)
    ]
    for mixture in both():
        found = log_density(mixture, jnp.asarray(POINTS))
        np.testing.assert_allclose(found, np.log(density), rtol=1e-10)
        found = noisy_log_density(mixture, jnp.asarray(POINTS), LOGSNR)
        np.testing.assert_allclose(found, np.log(noisy_density), rtol=1e-10)
        noisy_mixture = mixtures.marginal(mixture, LOGSNR[3])
        at = log_density(noisy_mixture, jnp.asarray(POINTS[3:4]))
        np.testing.assert_allclose(at, found[3:4], rtol=1e-10)


def test_posterior_is_bayes(x64: None) -> None:
    """Responsibilities and the Gaussian conditional, by linear solves in numpy."""
    for index, z in enumerate(POINTS):
        alpha, sigma = reference.alpha(LOGSNR[index]), reference.sigma(LOGSNR[index])
        joint = WEIGHTS * np.array([c.pdf(z) for c in noisy(index)])
        share = joint / joint.sum()
        means, covariances = [], []
        for mean, prior in zip(MEANS, COVARIANCES, strict=True):
            total = alpha**2 * prior + sigma**2 * np.eye(4)
            gain = np.linalg.solve(total, alpha * prior).T
            means.append(mean + gain @ (z - alpha * mean))
            covariances.append(prior - gain @ prior * alpha)
        mean = share @ np.array(means)
        spread = np.array(means) - mean
        covariance = np.tensordot(share, covariances, 1)
        covariance += np.einsum("k,kd,ke->de", share, spread, spread)
        for mixture in both():
            point = jnp.asarray(z)[None]
            x_hat = posterior_mean(mixture, point, LOGSNR[index])
            np.testing.assert_allclose(x_hat[0], mean, rtol=0, atol=1e-10)
            found = posterior_covariance(mixture, point, LOGSNR[index])
            np.testing.assert_allclose(found[0], covariance, rtol=0, atol=1e-10)
            trace = posterior_trace(mixture, point, LOGSNR[index])
            np.testing.assert_allclose(trace[0], np.trace(covariance), rtol=1e-9)


def test_posterior_by_quadrature(x64: None) -> None:
    """In 1-D the integrals over x can be done without any algebra."""
    mixture = making.isotropic([0.3, 0.7], [[-1.0], [0.5]], [0.2, 0.4], "float64")
    z, logsnr = 0.3, 0.5
    alpha, sigma = reference.alpha(logsnr), reference.sigma(logsnr)

    def joint(x: float, power: int) -> float:
        prior = 0.3 * scipy.stats.norm.pdf(x, -1, 0.2)
        prior += 0.7 * scipy.stats.norm.pdf(x, 0.5, 0.4)
        return x**power * prior * scipy.stats.norm.pdf(z, alpha * x, sigma)

    zero, one, two = (
        scipy.integrate.quad(joint, -4, 4, (power,), points=[-1, 0.5], epsabs=1e-13)[0]
        for power in range(3)
    )
    point = jnp.array([[z]])
    x_hat = posterior_mean(mixture, point, logsnr)
    np.testing.assert_allclose(x_hat[0, 0], one / zero, rtol=1e-9)
    trace = posterior_trace(mixture, point, logsnr)
    np.testing.assert_allclose(trace[0], two / zero - (one / zero) ** 2, rtol=1e-8)
    log_density = noisy_log_density(mixture, point, logsnr)
    np.testing.assert_allclose(log_density[0], np.log(zero), rtol=1e-9)


def test_score_and_tweedie(x64: None) -> None:
    """score = grad log q, x_hat = (z + sigma^2 score) / alpha, and
    d x_hat / d z = alpha / sigma^2 Var[x | z]."""
    z = jnp.asarray(POINTS)
    alpha = reference.alpha(LOGSNR)[:, None]
    sigma = reference.sigma(LOGSNR)[:, None]

    @jax.jit
    def derivatives(mixture: mixtures.Mixture) -> tuple[jax.Array, jax.Array]:
        gradient = jax.grad(
            lambda z: mixtures.noisy_log_density(mixture, z, LOGSNR).sum()
        )(z)
        jacobian = jax.vmap(
            jax.jacobian(lambda z, at: mixtures.posterior_mean(mixture, z[None], at)[0])
        )(z, jnp.asarray(LOGSNR))
        return gradient, jacobian

    for mixture in both():
        gradient, jacobian = derivatives(mixture)
        score = score_of(mixture, z, LOGSNR)
        np.testing.assert_allclose(score, gradient, rtol=1e-9, atol=1e-9)
        x_hat = posterior_mean(mixture, z, LOGSNR)
        tweedie = (z + sigma**2 * score) / alpha
        np.testing.assert_allclose(x_hat, tweedie, rtol=1e-8, atol=1e-10)
        covariance = posterior_covariance(mixture, z, LOGSNR)
        scale = (alpha / sigma**2)[..., None]
        np.testing.assert_allclose(jacobian, scale * covariance, rtol=1e-8, atol=1e-9)


def test_draws_and_moments(x64: None) -> None:
    number = 40_000
    mean = WEIGHTS @ MEANS
    spread = MEANS - mean
    covariance = np.tensordot(WEIGHTS, COVARIANCES, 1)
    covariance += np.einsum("k,kd,ke->de", WEIGHTS, spread, spread)
    for mixture in both():
        found_mean, found_covariance = moments(mixture)
        np.testing.assert_allclose(found_mean, mean, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found_covariance, covariance, rtol=0, atol=1e-12)
        x = np.asarray(draw(mixture, jax.random.key(0), number))
        error = 5 * np.sqrt(np.diag(covariance) / number)
        assert np.all(np.abs(x.mean(axis=0) - mean) < error)
        # Kolmogorov-Smirnov along a direction in which the mixture is known.
        direction = np.array([0.5, -0.5, 0.5, 0.5])
        centres = MEANS @ direction
        deviations = np.sqrt(np.einsum("d,kde,e->k", direction, COVARIANCES, direction))

        def distribution(
            v: np.ndarray, c: np.ndarray = centres, s: np.ndarray = deviations
        ) -> np.ndarray:
            return scipy.stats.norm.cdf((v[:, None] - c) / s) @ WEIGHTS

        assert scipy.stats.kstest(x @ direction, distribution).pvalue > 1e-3


def test_denoiser_minimises_the_error() -> None:
    """E||x - x_hat||^2 is the mean posterior trace, and any other x_hat is worse."""
    mixture = both("float32")[1]
    schedule = cosine()
    t = jnp.full(20_000, 0.4)
    x = draw(mixture, jax.random.key(1), 20_000)
    eps = jax.random.normal(jax.random.key(2), x.shape)
    z_t = add_noise(x, eps, schedule.logsnr(t))
    x_hat = jax.jit(mixtures.denoiser(mixture, schedule))(z_t, t, {})
    square = ((x - x_hat) ** 2).sum(1)
    trace = posterior_trace(mixture, z_t, schedule.logsnr(t))
    error = 4 * float(square.std()) / 20_000**0.5
    assert abs(float(square.mean() - trace.mean())) < error
    assert ((x - 0.95 * x_hat) ** 2).sum(1).mean() > square.mean() + error / 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtype_shape_and_ends(dtype: str) -> None:
    """Images go in and out; finite at t = 0 and 1."""
    mixture = both("float32")[0]
    z_t = jnp.asarray(POINTS, dtype).reshape(5, 2, 2, 1)
    for t in (0.0, 1.0):
        logsnr = cosine().logsnr(jnp.full(5, t))
        for function in (posterior_mean, score_of):
            found = function(mixture, z_t, logsnr)
            assert found.shape == z_t.shape and found.dtype == dtype
            assert jnp.all(jnp.isfinite(found))


def test_float32_agrees_with_float64() -> None:
    logsnr = np.array([-15.0, -5.0, 0.0, 5.0, 15.0])
    with jax.enable_x64(True):
        expected = [
            np.asarray(posterior_mean(m, jnp.asarray(POINTS), logsnr))
            for m in both("float64")
        ]
    for mixture, value in zip(both("float32"), expected, strict=True):
        points = jnp.asarray(POINTS, jnp.float32)
        found = posterior_mean(mixture, points, jnp.float32(logsnr))
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=2e-5)


def test_points_of_another_dimension() -> None:
    with pytest.raises(ValueError, match="have 6 dimensions each, the distribution"):
        mixtures.posterior_mean(both("float32")[0], jnp.zeros((2, 3, 2)), 0.0)
