"""The probability-flow ODE solved: exactly in one dimension, to high order elsewhere.

The flow from t to s carries q(z_t) to q(z_s). In one dimension it keeps the order of
points, so it is the transport of the distribution functions, `F_s^-1(F_t(z_t))`; in a
product of one-dimensional distributions it is that in every coordinate. Elsewhere

    dz / dlogsnr = alpha (x_hat - alpha z) / 2

is integrated by the classical Runge-Kutta method of order 4, which states its error.

A flow gives the exact multistep consistency function of the paper for any number of
segments: `f(z_t, t) = invDDIM_{t->t_step}(flow_{t->t_step}(z_t), z_t)`.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike

from multistep_cm.diffusion import ddim
from multistep_cm.diffusion.parameterization import Conditioning, Denoiser, per_example
from multistep_cm.diffusion.schedules import Schedule, alpha_of, sigma_of
from multistep_cm.truth.mixtures import Mixture

Flow: TypeAlias = Callable[[jax.Array, ArrayLike, ArrayLike], jax.Array]
"""`(z_t [batch, ...], logsnr_t, logsnr_s) -> z_s`; log-SNR () or [batch]."""

ExactMean: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
"""`(z_t [batch, ...], logsnr [batch]) -> E[x | z_t]`."""


def transport(mixture: Mixture) -> Flow:
    """The exact flow where every coordinate is an independent draw of a 1-D `mixture`.

    Points [batch, ...] of any size: one coordinate is the mixture itself, more are its
    product. Exact to rounding but for points with |F_t(z) - 1/2| so near 1/2 that no
    float can tell (beyond about 20 deviations). Raises ValueError if d is not 1.
    """
    if mixture.dimension != 1:
        raise ValueError(
            f"the mixture has {mixture.dimension} dimensions, the transport of "
            "distribution functions needs 1"
        )
    means = mixture.means[:, 0]
    variances = (mixture.bases[:, 0] ** 2 * mixture.variances).sum(-1)

    def log_odds(z: jax.Array, logsnr: ArrayLike) -> jax.Array:
        """log F - log(1 - F): increasing, and precise in both tails."""
        alpha, sigma = _scales(logsnr, z)
        deviation = jnp.sqrt(alpha**2 * variances + sigma**2)
        standard = (z[..., None] - alpha * means) / deviation
        below = jax.nn.logsumexp(mixture.log_weights + log_ndtr(standard), axis=-1)
        above = jax.nn.logsumexp(mixture.log_weights + log_ndtr(-standard), axis=-1)
        return below - above

    def flow(z_t: jax.Array, logsnr_t: ArrayLike, logsnr_s: ArrayLike) -> jax.Array:
        target = log_odds(z_t, logsnr_t)
        alpha, sigma = _scales(logsnr_s, z_t)
        reach = 40 * jnp.sqrt(alpha**2 * variances + sigma**2)
        low = (alpha * means - reach).min(axis=-1)
        high = (alpha * means + reach).max(axis=-1)
        ends = (
            jnp.broadcast_to(low, z_t.shape).astype(z_t.dtype),
            jnp.broadcast_to(high, z_t.shape).astype(z_t.dtype),
        )

        def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple:
            low, high = ends
            middle = 0.5 * (low + high)
            too_low = log_odds(middle, logsnr_s) < target
            return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

        # From 80 deviations to the last bit of a number that may be small.
        halvings = jnp.finfo(z_t.dtype).nmant + 16
        low, high = jax.lax.fori_loop(0, halvings, halve, ends)
        return 0.5 * (low + high)

    return flow


def _scales(logsnr: ArrayLike, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """alpha and sigma against [batch, ..., component]."""
    alpha, sigma = alpha_of(logsnr), sigma_of(logsnr)
    return per_example(alpha, z)[..., None], per_example(sigma, z)[..., None]


class Solution(NamedTuple):
    """`z_s`, and the largest error of each example as the solver estimates it."""

    z_s: jax.Array
    error: jax.Array


def integrate(
    exact_mean: ExactMean,
    z_t: jax.Array,
    logsnr_t: ArrayLike,
    logsnr_s: ArrayLike,
    num_steps: int = 256,
) -> Solution:
    """The flow by Runge-Kutta 4 with steps equal in log-SNR; any Denoiser's flow too.

    Solves twice, with `num_steps` and half of it. The fifteenth part of the difference
    is the estimated error of the finer one, [batch]. `num_steps` must be even and
    positive, else ValueError.
    """
    if num_steps < 2 or num_steps % 2:
        raise ValueError(f"num_steps is {num_steps}, expected an even number from 2 on")
    batch = z_t.shape[:1]
    start = jnp.broadcast_to(jnp.asarray(logsnr_t, z_t.dtype), batch)
    end = jnp.broadcast_to(jnp.asarray(logsnr_s, z_t.dtype), batch)
    fine = _runge_kutta(exact_mean, z_t, start, end, num_steps)
    coarse = _runge_kutta(exact_mean, z_t, start, end, num_steps // 2)
    difference = jnp.abs(fine - coarse).reshape(*batch, -1).max(axis=1)
    return Solution(fine, difference / 15)


def _runge_kutta(
    exact_mean: ExactMean,
    z: jax.Array,
    start: jax.Array,
    end: jax.Array,
    num_steps: int,
) -> jax.Array:
    width = (end - start) / num_steps

    def slope(z: jax.Array, logsnr: jax.Array) -> jax.Array:
        alpha = per_example(alpha_of(logsnr), z)
        return 0.5 * alpha * (exact_mean(z, logsnr) - alpha * z)

    def step(z: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        here = start + index * width
        h = per_example(width, z)
        k_1 = slope(z, here)
        k_2 = slope(z + 0.5 * h * k_1, here + 0.5 * width)
        k_3 = slope(z + 0.5 * h * k_2, here + 0.5 * width)
        k_4 = slope(z + h * k_3, here + width)
        return (z + h * (k_1 + 2 * k_2 + 2 * k_3 + k_4) / 6).astype(z.dtype), None

    return jax.lax.scan(step, z, jnp.arange(num_steps))[0]


def segment_start(t: jax.Array, student_steps: int) -> jax.Array:
    """t_step of the segment (t_step, t_step + 1 / student_steps] that holds t."""
    scaled = t * student_steps
    # A grid time k / student_steps may be a few bits off; it ends the segment below.
    slack = 8 * jnp.finfo(t.dtype).eps * student_steps
    index = jnp.clip(jnp.ceil(scaled - slack) - 1, 0, student_steps - 1)
    return index / student_steps


def consistency_function(
    flow: Flow, schedule: Schedule, student_steps: int, exact: Denoiser
) -> Denoiser:
    """The exact multistep consistency function, a Denoiser of (z_t, t, cond).

    `invDDIM_{t->t_step}(flow(z_t), z_t)`, so that one DDIM step reaches the true point
    at the segment's end. At t = 0, where there is no way to go, it is its limit, the
    posterior mean `exact`. Raises ValueError for student_steps < 1.
    """
    if student_steps < 1:
        raise ValueError(f"student_steps is {student_steps}, expected at least 1")

    def denoise(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        t_step = segment_start(t, student_steps)
        still = t <= t_step
        # Any other time: what is computed there is not used.
        from_t = jnp.where(still, t_step + 0.5 / student_steps, t)
        logsnr_t, logsnr_s = schedule.logsnr(from_t), schedule.logsnr(t_step)
        z_step = flow(z_t, logsnr_t, logsnr_s)
        x_hat = ddim.inverse_ddim(z_step, z_t, logsnr_t, logsnr_s)
        return jnp.where(per_example(still, z_t), exact(z_t, t, cond), x_hat)

    return denoise
