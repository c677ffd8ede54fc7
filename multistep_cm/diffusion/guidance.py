"""Classifier-free guidance of a denoiser (Ho and Salimans 2022)."""

import jax
import jax.numpy as jnp

from multistep_cm.diffusion.parameterization import Conditioning, Denoiser


def guided(
    x_conditional: jax.Array, x_unconditional: jax.Array, scale: float
) -> jax.Array:
    """(1 + scale) x_conditional - scale x_unconditional; scale 0 is no guidance."""
    return x_conditional + scale * (x_conditional - x_unconditional)


def guided_denoiser(denoiser: Denoiser, scale: float, null_label: int) -> Denoiser:
    """A denoiser with guidance; both predictions come from one call of twice the batch.

    `denoiser` must know `null_label` as "no class". Scale 0 returns it unchanged.
    Raises ValueError when the conditioning holds no "label".
    """
    if scale == 0.0:
        return denoiser

    def denoise(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        if "label" not in cond:
            raise ValueError("guidance needs a label to guide to; cond holds none")
        null = {**cond, "label": jnp.full_like(cond["label"], null_label)}
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), dict(cond), null)
        x_hat = denoiser(jnp.concatenate([z_t, z_t]), jnp.concatenate([t, t]), both)
        x_conditional, x_unconditional = jnp.split(x_hat, 2)
        return guided(x_conditional, x_unconditional, scale)

    return denoise
