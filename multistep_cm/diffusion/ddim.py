"""DDIM, inverse DDIM and aDDIM: one step from time t to a cleaner time s.

Equation numbers are those of Multistep Consistency Models. All functions take
log-SNR; images are [batch, ...]; log-SNR and `x_var` are scalars or [batch]. The
result has the dtype of `z_t` (float64 too); arithmetic is at least float32.

With `k = alpha / sigma = exp(logsnr / 2)` a DDIM step is a straight line in k:
`z_s / sigma_s = z_t / sigma_t + (k_s - k_t) x_hat`. Hence every deterministic one-step
integrator is a DDIM step along an *effective* x, and the differences of k are taken
with expm1, because neighbouring times of a fine grid differ in the fourth digit.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from multistep_cm.diffusion.parameterization import per_example
from multistep_cm.diffusion.schedules import alpha_of, sigma_of


def ddim_step(
    x_hat: jax.Array, z_t: jax.Array, logsnr_t: ArrayLike, logsnr_s: ArrayLike
) -> jax.Array:
    """DDIM_{t->s} (eq. 4): alpha_s x_hat + (sigma_s / sigma_t)(z_t - alpha_t x_hat)."""
    # x_hat's coefficient alpha_s - alpha_t sigma_s / sigma_t, without cancellation.
    x_scale = alpha_of(logsnr_s) * -jnp.expm1(_half(logsnr_t, logsnr_s))
    z_scale = sigma_ratio(logsnr_s, logsnr_t)
    z_s = per_example(x_scale, z_t) * x_hat + per_example(z_scale, z_t) * z_t
    return z_s.astype(z_t.dtype)


def inverse_ddim(
    z_s: jax.Array, z_t: jax.Array, logsnr_t: ArrayLike, logsnr_s: ArrayLike
) -> jax.Array:
    """invDDIM_{t->s} (eq. 5): the x_hat for which DDIM_{t->s}(x_hat, z_t) = z_s.

    Needs logsnr_s > logsnr_t: at s = t every x_hat gives the same step.
    """
    x_scale = alpha_of(logsnr_s) * -jnp.expm1(_half(logsnr_t, logsnr_s))
    z_scale = sigma_ratio(logsnr_s, logsnr_t)
    x_hat = (z_s - per_example(z_scale, z_t) * z_t) / per_example(x_scale, z_t)
    return x_hat.astype(z_t.dtype)


def noise_estimate(x_hat: jax.Array, z_t: jax.Array, logsnr_t: ArrayLike) -> jax.Array:
    """e_hat = (z_t - alpha_t x_hat) / sigma_t, [batch, ...]."""
    alpha = per_example(alpha_of(logsnr_t), z_t)
    sigma = per_example(sigma_of(logsnr_t), z_t)
    return (z_t - alpha * x_hat) / sigma


def x_variance(x: jax.Array, x_hat: jax.Array, eta: ArrayLike) -> jax.Array:
    """x_var = eta ||x - x_hat||^2 / d per example, [batch]; the paper: eta 0.75."""
    axes = tuple(range(1, x.ndim))
    return jnp.asarray(eta) * jnp.mean(jnp.square(x - x_hat), axis=axes)


def x_variance_analytic(logsnr_t: ArrayLike) -> jax.Array:
    """x_var = 0.1 / (2 + alpha_t^2 / sigma_t^2), which needs no data (algorithm 3)."""
    return 0.1 / (2.0 + jnp.exp(jnp.asarray(logsnr_t)))


def addim_step(
    x_hat: jax.Array,
    z_t: jax.Array,
    logsnr_t: ArrayLike,
    logsnr_s: ArrayLike,
    x_var: ArrayLike,
) -> jax.Array:
    """aDDIM_{t->s} (algorithm 3): DDIM with the norm of an exact sampler's z_s.

    `z_s = alpha_s x_hat + sqrt(sigma_s^2 + (d / ||e_hat||^2) z_var) e_hat` with
    `z_var = (alpha_s - alpha_t sigma_s / sigma_t)^2 x_var` and ||e_hat||^2 for every
    example on its own. `x_var` () or [batch], >= 0; 0 gives DDIM.
    """
    x_effective = addim_effective_x(x_hat, z_t, logsnr_t, logsnr_s, x_var)
    return ddim_step(x_effective, z_t, logsnr_t, logsnr_s)


def addim_effective_x(
    x_hat: jax.Array,
    z_t: jax.Array,
    logsnr_t: ArrayLike,
    logsnr_s: ArrayLike,
    x_var: ArrayLike,
) -> jax.Array:
    """The x along which a plain DDIM step makes the aDDIM step, [batch, ...].

    With `r = x_var d / ||e_hat||^2` and `g = (k_s - k_t)^2 r` the aDDIM step is
    `alpha_s x_hat + sigma_s sqrt(1 + g) e_hat`, so the effective x is
    `x_hat + (sqrt(1 + g) - 1) / (k_s - k_t) e_hat`; here
    `(sqrt(1 + g) - 1) / (k_s - k_t) = (k_s - k_t) r / (1 + sqrt(1 + g))`, which is
    also right at s = t.
    """
    e_hat = noise_estimate(x_hat, z_t, logsnr_t)
    axes = tuple(range(1, z_t.ndim))
    mean_square = jnp.mean(jnp.square(e_hat), axis=axes)
    # An e_hat of zero has no direction to stretch: the step is then DDIM. The floor is
    # high enough that no product below overflows.
    r = jnp.asarray(x_var) / jnp.maximum(mean_square, jnp.finfo(e_hat.dtype).eps ** 2)
    rise = jnp.exp(0.5 * jnp.asarray(logsnr_t)) * jnp.expm1(_half(logsnr_s, logsnr_t))
    stretch = rise * r / (1.0 + jnp.sqrt(1.0 + jnp.square(rise) * r))
    return (x_hat + per_example(stretch, z_t) * e_hat).astype(z_t.dtype)


def heun_effective_x(
    x_hat: jax.Array, x_hat_s: jax.Array, logsnr_t: ArrayLike, logsnr_s: ArrayLike
) -> jax.Array:
    """The x along which a plain DDIM step makes Heun's second-order step.

    In `y = z / alpha` and `sigma / alpha` the flow is `dy = e_hat d(sigma / alpha)`
    (Karras et al. 2022), and Heun takes the mean of e_hat at z_t and at the DDIM
    point z_s. `x_hat_s` is the denoiser's output at that z_s. There
    `e_hat_t - e_hat_s = k_s (x_hat_s - x_hat)`, so the noise is never formed.
    """
    gain = 0.5 * jnp.exp(_half(logsnr_s, logsnr_t))
    return (x_hat + per_example(gain, x_hat) * (x_hat_s - x_hat)).astype(x_hat.dtype)


def ancestral_step(
    x_hat: jax.Array,
    z_t: jax.Array,
    logsnr_t: ArrayLike,
    logsnr_s: ArrayLike,
    noise: jax.Array,
) -> jax.Array:
    """A draw from q(z_s | z_t, x = x_hat), the DDPM sampler (Ho et al. 2020).

    Mean `alpha_s c x_hat + (alpha_t sigma_s^2) / (alpha_s sigma_t^2) z_t` and variance
    `c sigma_s^2` with `c = 1 - SNR_t / SNR_s`.
    """
    c = -jnp.expm1(2.0 * _half(logsnr_t, logsnr_s))
    x_scale = alpha_of(logsnr_s) * c
    z_scale = jnp.exp(_half(logsnr_t, logsnr_s)) * sigma_ratio(logsnr_s, logsnr_t)
    n_scale = sigma_of(logsnr_s) * jnp.sqrt(c)
    z_s = (
        per_example(x_scale, z_t) * x_hat
        + per_example(z_scale, z_t) * z_t
        + per_example(n_scale, z_t) * noise
    )
    return z_s.astype(z_t.dtype)


def sigma_ratio(logsnr_s: ArrayLike, logsnr_t: ArrayLike) -> jax.Array:
    """sigma_s / sigma_t with full relative precision."""
    log_s = jax.nn.log_sigmoid(-jnp.asarray(logsnr_s))
    log_t = jax.nn.log_sigmoid(-jnp.asarray(logsnr_t))
    return jnp.exp(0.5 * (log_s - log_t))


def _half(logsnr_a: ArrayLike, logsnr_b: ArrayLike) -> jax.Array:
    """(logsnr_a - logsnr_b) / 2, that is log(k_a / k_b)."""
    return 0.5 * (jnp.asarray(logsnr_a) - jnp.asarray(logsnr_b))
