"""The diffusion teacher's loss: squared error of v at a random time."""

import jax
import jax.numpy as jnp

from multistep_cm.diffusion.parameterization import add_noise
from multistep_cm.diffusion.schedules import Schedule
from multistep_cm.diffusion.timesteps import draw_noise, draw_uniform_times
from multistep_cm.diffusion.weighting import loss_weight, mean_square
from multistep_cm.losses.signature import Batch, Loss, Metrics, Params, Predict


def make_denoising_loss(predict: Predict, schedule: Schedule) -> Loss:
    """`||v - v_hat||^2 / d = (SNR_t + 1) ||x - x_hat||^2 / d`, t uniform in [0, 1]."""

    def loss(
        params: Params, batch: Batch, keys: jax.Array, step: jax.Array, frozen: Params
    ) -> tuple[jax.Array, Metrics]:
        x = batch["image"]
        time_keys, noise_keys, dropout_keys = jax.vmap(
            lambda key: jax.random.split(key, 3), out_axes=1
        )(keys)
        t = draw_uniform_times(time_keys)
        logsnr = schedule.logsnr(t)
        z_t = add_noise(x, draw_noise(noise_keys, x), logsnr)
        x_hat = predict(params, z_t, t, batch["cond"], dropout_keys[0])
        losses = loss_weight("snr_plus_1", logsnr) * mean_square(x - x_hat)
        return jnp.mean(losses), {"t": t, "loss": losses}

    return loss
