"""Mixtures with classes: every component belongs to one, and all is known by label.

Labels are [batch]; `num_classes` stands for "no class", the whole mixture, as it does
for the networks.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from multistep_cm.diffusion.parameterization import Conditioning, Denoiser
from multistep_cm.diffusion.schedules import Schedule
from multistep_cm.truth.mixtures import Mixture, noisy_log_density, posterior_mean


def of_class(
    mixture: Mixture, classes: jax.Array, num_classes: int, label: jax.Array
) -> Mixture:
    """For each example, the components of its label, with the weights that they have.

    `classes` [K] is the class of each component. The weights, [batch, K], do not sum to
    one: `noisy_log_density` is log q(z_t, label), and of "no class" log q(z_t).
    """
    member = (classes == label[:, None]) | (label[:, None] == num_classes)
    weights = jnp.where(member, mixture.log_weights, -jnp.inf)
    return dataclasses.replace(mixture, log_weights=weights)


def class_denoiser(
    mixture: Mixture, classes: jax.Array, num_classes: int, schedule: Schedule
) -> Denoiser:
    """The exact E[x | z_t, label] as a `Denoiser`; it reads `cond["label"]`."""

    def denoise(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        part = of_class(mixture, classes, num_classes, cond["label"])
        return posterior_mean(part, z_t, schedule.logsnr(t))

    return denoise


def class_log_probability(
    mixture: Mixture,
    classes: jax.Array,
    num_classes: int,
    z_t: jax.Array,
    logsnr: ArrayLike,
    label: jax.Array,
) -> jax.Array:
    """log q(label | z_t), [batch], by Bayes; 0 for "no class"."""
    part = of_class(mixture, classes, num_classes, label)
    joint = noisy_log_density(part, z_t, logsnr)
    return joint - noisy_log_density(mixture, z_t, logsnr)
