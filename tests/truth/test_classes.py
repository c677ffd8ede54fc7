"""Classes of a mixture, and guidance where its closed form is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.diffusion import samplers
from multistep_cm.diffusion.ddim import ddim_step
from multistep_cm.diffusion.guidance import guided_denoiser
from multistep_cm.diffusion.schedules import cosine
from multistep_cm.truth import classes, making, mixtures
from tests.diffusion import reference

RANDOM = np.random.default_rng(0)
WEIGHTS = np.array([0.1, 0.4, 0.3, 0.2])
MEANS = RANDOM.normal(size=(4, 3))
FACTORS = RANDOM.normal(size=(4, 3, 2))
COVARIANCES = FACTORS @ FACTORS.swapaxes(1, 2) + 0.1 * np.eye(3)
CLASSES = np.array([0, 1, 0, 2])
NULL = 3
LABELS = np.array([0, 1, 2, NULL, 0])
TIMES = np.array([0.9, 0.7, 0.5, 0.3, 0.05])
POINTS = RANDOM.normal(size=(5, 3))
SCHEDULE = cosine()

# One program each: operation by operation, XLA compiles every one of them.
posterior_mean = jax.jit(mixtures.posterior_mean)
noisy_log_density = jax.jit(mixtures.noisy_log_density)
class_log_probability = jax.jit(classes.class_log_probability)
ddim = jax.jit(ddim_step)


def whole() -> mixtures.Mixture:
    return making.full(WEIGHTS, MEANS, COVARIANCES, "float64")


def alone(label: int) -> mixtures.Mixture:
    """The distribution of a class, made of its components only."""
    of = label == CLASSES if label != NULL else np.full(4, True)
    weights = WEIGHTS[of] / WEIGHTS[of].sum()
    return making.full(weights, MEANS[of], COVARIANCES[of], "float64")


def test_the_denoiser_of_a_label_is_that_of_its_class(x64: None) -> None:
    denoise = classes.class_denoiser(whole(), jnp.asarray(CLASSES), NULL, SCHEDULE)
    t, z_t = jnp.asarray(TIMES), jnp.asarray(POINTS)
    found = jax.jit(denoise)(z_t, t, {"label": jnp.asarray(LABELS)})
    logsnr = SCHEDULE.logsnr(t)
    for i, label in enumerate(LABELS):
        one = slice(i, i + 1)
        expected = posterior_mean(alone(label), z_t[one], logsnr[one])
        np.testing.assert_allclose(found[one], expected, rtol=1e-9)


def test_probabilities_of_the_classes(x64: None) -> None:
    z_t, logsnr = jnp.asarray(POINTS), SCHEDULE.logsnr(jnp.asarray(TIMES))

    def log_probability(label: int) -> jax.Array:
        return class_log_probability(
            whole(), jnp.asarray(CLASSES), NULL, z_t, logsnr, jnp.full(5, label)
        )

    share = [WEIGHTS[label == CLASSES].sum() for label in range(3)]
    for label in range(3):
        density = noisy_log_density(alone(label), z_t, logsnr)
        total = noisy_log_density(whole(), z_t, logsnr)
        expected = np.log(share[label]) + density - total
        np.testing.assert_allclose(log_probability(label), expected, rtol=1e-8)
    sums = np.sum([jnp.exp(log_probability(label)) for label in range(3)], axis=0)
    np.testing.assert_allclose(sums, 1, rtol=1e-12)
    np.testing.assert_allclose(log_probability(NULL), 0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guided_prediction_is_that_of_the_sharpened_density(
    x64: None, scale: float
) -> None:
    """x = (z_t + sigma^2 grad log [q(z_t) q(label | z_t)^(1 + scale)]) / alpha."""
    parts = (whole(), jnp.asarray(CLASSES), NULL)
    denoise = guided_denoiser(
        classes.class_denoiser(*parts, SCHEDULE), scale, null_label=NULL
    )
    t, z_t, label = jnp.asarray(TIMES), jnp.asarray(POINTS), jnp.asarray(LABELS)
    logsnr = SCHEDULE.logsnr(t)

    def log_density(z_t: jax.Array) -> jax.Array:
        log_q = mixtures.noisy_log_density(whole(), z_t, logsnr)
        log_p = classes.class_log_probability(*parts, z_t, logsnr, label)
        # Examples are independent: the gradient of the sum is each one's own.
        return jnp.sum(log_q + (1 + scale) * log_p)

    score = jax.jit(jax.grad(log_density))(z_t)
    expected = z_t + SCHEDULE.sigma(t)[:, None] ** 2 * score
    expected /= SCHEDULE.alpha(t)[:, None]
    found = jax.jit(denoise)(z_t, t, {"label": label})
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_guidance_between_two_normals(x64: None, scale: float) -> None:
    """N(m, s^2) and N(-m, s^2): no class is a tanh between them."""
    m, s, t = 0.8, 0.3, 0.4
    mixture = making.isotropic([0.5, 0.5], [[m], [-m]], s, "float64")
    denoise = guided_denoiser(
        classes.class_denoiser(mixture, jnp.arange(2), 2, SCHEDULE), scale, null_label=2
    )
    denoise = jax.jit(denoise)
    z = np.linspace(-2, 2, 9)
    logsnr = reference.logsnr(t)
    alpha, sigma = reference.alpha(logsnr), reference.sigma(logsnr)
    variance = alpha**2 * s**2 + sigma**2
    gain = alpha * s**2 / variance
    for label, sign in ((0, 1.0), (1, -1.0)):
        means = [np.full(9, sign * m), m * np.tanh(alpha * m * z / variance)]
        with_label, without = (gain * (z - alpha * mean) + mean for mean in means)
        expected = with_label + scale * (with_label - without)
        cond = {"label": jnp.full(9, label)}
        found = denoise(jnp.asarray(z[:, None]), jnp.full(9, t), cond)
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-7)


def test_a_sampler_is_guided_within_the_interval_alone(x64: None) -> None:
    """Step by step: at t = 1 and 0.25 the denoiser, at 0.75 and 0.5 the guided one."""
    by_class = classes.class_denoiser(whole(), jnp.asarray(CLASSES), NULL, SCHEDULE)
    plain = jax.jit(by_class)
    everywhere = jax.jit(guided_denoiser(by_class, 2.0, NULL))
    within = guided_denoiser(by_class, 2.0, NULL, interval=(0.5, 0.75))
    z_1, cond = jnp.asarray(POINTS), {"label": jnp.asarray(LABELS)}
    found = samplers.sample(within, SCHEDULE, z_1, 4, cond=cond)
    z = z_1
    for t, denoise in (
        (1.0, plain),
        (0.75, everywhere),
        (0.5, everywhere),
        (0.25, plain),
    ):
        logsnr_t, logsnr_s = SCHEDULE.logsnr(t), SCHEDULE.logsnr(t - 0.25)
        z = ddim(denoise(z, jnp.full(5, t), cond), z, logsnr_t, logsnr_s)
    np.testing.assert_allclose(found, z, rtol=1e-9)
    other = samplers.sample(everywhere, SCHEDULE, z_1, 4, cond=cond)
    assert jnp.abs(other - found).max() > 1e-2
