"""x_var for aDDIM sampling, measured once per time on data (algorithm 3)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from multistep_cm.diffusion.ddim import x_variance
from multistep_cm.diffusion.parameterization import Conditioning, Denoiser, add_noise
from multistep_cm.diffusion.samplers import XVariance
from multistep_cm.diffusion.schedules import Schedule


def measure_x_variance(
    denoiser: Denoiser,
    schedule: Schedule,
    x: jax.Array,
    cond: Conditioning,
    key: jax.Array,
    times: jax.Array,
    eta: ArrayLike = 0.75,
) -> jax.Array:
    """`eta E||x - x_hat(z_t)||^2 / d` at each of `times` [n]: float [n].

    `x` [batch, ...] is data with its conditioning; every time draws noise of its own.
    """

    def at(index: jax.Array, t: jax.Array) -> jax.Array:
        noise = jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)
        z_t = add_noise(x, noise, schedule.logsnr(t))
        x_hat = denoiser(z_t, jnp.full(x.shape[0], t, times.dtype), cond)
        return jnp.mean(x_variance(x, x_hat, eta))

    return jax.lax.map(lambda pair: at(*pair), (jnp.arange(times.size), times))


def table_x_variance(times: jax.Array, values: jax.Array) -> XVariance:
    """An `x_variance` for `samplers.sample` from measured values, linear between.

    `times` [n] in any order.
    """
    order = jnp.argsort(times)
    times, values = times[order], values[order]
    return lambda t, logsnr_t: jnp.interp(t, times, values)
