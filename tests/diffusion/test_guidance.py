"""Classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.diffusion import guidance
from multistep_cm.diffusion.parameterization import Conditioning

NULL = 3
MEANS = jnp.array([1.0, 2.0, 4.0, 10.0])


def denoise(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
    return z_t * t[:, None] + MEANS[cond["label"]][:, None]


def test_extrapolates_from_the_unconditional() -> None:
    z_t = jnp.arange(6.0).reshape(3, 2)
    t = jnp.array([0.1, 0.5, 1.0])
    label = jnp.array([0, 1, 2])
    guided = guidance.guided_denoiser(denoise, 1.5, NULL)
    found = guided(z_t, t, {"label": label})
    expected = z_t * t[:, None] + (2.5 * MEANS[label] - 1.5 * MEANS[NULL])[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_scale_zero_is_the_denoiser_itself() -> None:
    assert guidance.guided_denoiser(denoise, 0.0, NULL) is denoise


def test_null_label_is_left_alone() -> None:
    z_t, t = jnp.ones((2, 2)), jnp.array([0.2, 0.7])
    cond = {"label": jnp.array([NULL, NULL])}
    found = guidance.guided_denoiser(denoise, 4.0, NULL)(z_t, t, cond)
    np.testing.assert_allclose(found, denoise(z_t, t, cond), rtol=1e-6)


def test_one_network_call_with_the_other_conditioning_kept() -> None:
    calls = []

    def record(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        calls.append(cond)
        return denoise(z_t, t, cond)

    guided = guidance.guided_denoiser(record, 2.0, NULL)
    cond = {"label": jnp.array([0, 1]), "text": jnp.array([7.0, 8.0])}
    assert guided(jnp.ones((2, 2)), jnp.ones(2), cond).shape == (2, 2)
    assert len(calls) == 1
    np.testing.assert_array_equal(calls[0]["label"], [0, 1, NULL, NULL])
    np.testing.assert_array_equal(calls[0]["text"], [7, 8, 7, 8])


def test_needs_a_label() -> None:
    guided = guidance.guided_denoiser(denoise, 1.0, NULL)
    with pytest.raises(ValueError, match="guidance needs a label"):
        guided(jnp.ones((2, 2)), jnp.ones(2), {})
