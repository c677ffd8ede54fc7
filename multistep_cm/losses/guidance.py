"""Guidance distillation (Meng et al. 2023): a guided diffusion model in one call.

    x_guided = (1 + w) x_hat(z_t, t, caption) - w x_hat(z_t, t, nothing)     the teacher
    loss     = (SNR_t + 1) ||x_guided - f(z_t, t, caption, w)||^2 / d

The student is a diffusion model too and is sampled like one. With a range of scales, w
is drawn for each example and told to the student.
"""

import jax
import jax.numpy as jnp

from multistep_cm.diffusion.guidance import Guidance, predict_guided
from multistep_cm.diffusion.parameterization import Conditioning, add_noise
from multistep_cm.diffusion.schedules import Schedule
from multistep_cm.diffusion.timesteps import draw_noise, draw_uniform_times
from multistep_cm.diffusion.weighting import loss_weight, multiscale_norm
from multistep_cm.losses.segments import ConsistencyOptions
from multistep_cm.losses.signature import Batch, Loss, Metrics, Params, Predict


def make_guidance_loss(
    predict: Predict, schedule: Schedule, options: ConsistencyOptions, null_label: int
) -> Loss:
    """A `Loss` that reads `frozen["teacher_params"]`, t uniform in [0, 1].

    Of `options` it reads what is guided and the number of 2x2 average pools; a
    "guidance" in the conditioning is each example's scale. The teacher runs without
    dropout.
    """
    guidance = Guidance(options.guidance_scale, null_label, options.guidance_interval)

    def loss(
        params: Params, batch: Batch, keys: jax.Array, step: jax.Array, frozen: Params
    ) -> tuple[jax.Array, Metrics]:
        x, cond, teacher = batch["image"], batch["cond"], frozen["teacher_params"]
        time_keys, noise_keys, dropout_keys = jax.vmap(
            lambda key: jax.random.split(key, 3), out_axes=1
        )(keys)
        t = draw_uniform_times(time_keys)
        logsnr = schedule.logsnr(t)
        z_t = add_noise(x, draw_noise(noise_keys, x), logsnr)

        def denoise(z: jax.Array, time: jax.Array, cond: Conditioning) -> jax.Array:
            return predict(teacher, z, time, cond, None)

        _, x_guided = predict_guided(denoise, guidance, z_t, t, cond)
        x_hat = predict(params, z_t, t, cond, dropout_keys[0])
        difference = jax.lax.stop_gradient(x_guided) - x_hat
        distance = multiscale_norm(difference, 1.0, "squared", options.multiscale)
        losses = loss_weight("snr_plus_1", logsnr) * distance
        return jnp.mean(losses), {"t": t, "loss": losses}

    return loss
