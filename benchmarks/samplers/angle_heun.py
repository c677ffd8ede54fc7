"""Heun's method in the angle of the process, a rival that `samplers.sample` lacks.

With alpha = cos(phi) and sigma = sin(phi) the flow is dz / dphi = v (Salimans and Ho
2022), where v = alpha eps_hat - sigma x_hat stays of order 1 at both ends. Karras et
al. step in sigma / alpha, as `samplers.sample` does; that runs to exp(7.5) = 1808 on
the cosine schedule, and the mean of two slopes over so long a first step is far off.
"""

import jax
import jax.numpy as jnp

from multistep_cm.diffusion import ddim
from multistep_cm.diffusion.parameterization import Denoiser, from_x
from multistep_cm.diffusion.samplers import time_grid
from multistep_cm.diffusion.schedules import Schedule


def angle(logsnr: jax.Array) -> jax.Array:
    """phi = atan(sigma / alpha), from 0 (data) to pi / 2 (noise)."""
    return jnp.arctan(jnp.exp(-0.5 * logsnr))


def sample_by_angle(
    denoiser: Denoiser, schedule: Schedule, z_1: jax.Array, num_steps: int
) -> jax.Array:
    """From z_1 [batch, ...] at t = 1 to z_0, in 2 num_steps - 1 network calls.

    `z_s = z_t - (phi_t - phi_s) (v_t + v_s) / 2` with v_s at the DDIM point, on the
    uniform grid; the last step is DDIM.
    """
    times = time_grid(schedule, num_steps)

    def call(z: jax.Array, t: jax.Array) -> jax.Array:
        return denoiser(z, jnp.full(z.shape[0], t, times.dtype), {})

    def step(
        z_t: jax.Array, ends: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        t, s = ends
        logsnr_t, logsnr_s = schedule.logsnr(t), schedule.logsnr(s)
        x_hat = call(z_t, t)
        z_s = ddim.ddim_step(x_hat, z_t, logsnr_t, logsnr_s)
        v_t = from_x(x_hat, z_t, logsnr_t, "v")
        v_s = from_x(call(z_s, s), z_s, logsnr_s, "v")
        turn = angle(logsnr_t) - angle(logsnr_s)
        return (z_t - 0.5 * turn * (v_t + v_s)).astype(z_t.dtype), None

    z, _ = jax.lax.scan(step, z_1, (times[:-2], times[1:-1]))
    logsnr_t, logsnr_s = schedule.logsnr(times[-2]), schedule.logsnr(times[-1])
    return ddim.ddim_step(call(z, times[-2]), z, logsnr_t, logsnr_s)
