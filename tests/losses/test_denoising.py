"""The teacher's loss against ||v - v_hat||^2 in numpy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from multistep_cm.diffusion.schedules import cosine
from multistep_cm.losses.denoising import make_denoising_loss
from tests.diffusion import reference
from tests.losses.fakes import (
    Recorder,
    make_batch,
    make_keys,
    numpy_network,
    parameters,
    run_recorded,
)

STEP = jnp.int32(0)


def test_squared_error_of_v(x64: None) -> None:
    params = parameters(0.7, -0.3)
    value, metrics, (call,) = run_recorded(
        lambda predict: make_denoising_loss(predict, cosine()), 64, params, {}
    )
    x, z_t = np.asarray(make_batch(64)["image"]), np.asarray(call.z_t)
    logsnr = reference.logsnr(call.t).reshape(-1, 1, 1, 1)
    alpha, sigma = reference.alpha(logsnr), reference.sigma(logsnr)
    eps = (z_t - alpha * x) / sigma
    assert scipy.stats.kstest(eps.ravel(), "norm").pvalue > 1e-3
    assert scipy.stats.kstest(np.asarray(call.t), "uniform").pvalue > 1e-3
    x_hat = numpy_network(params, z_t, np.asarray(call.t).reshape(-1, 1, 1, 1))
    v, v_hat = alpha * eps - sigma * x, (alpha * z_t - x_hat) / sigma
    expected = np.mean((v - v_hat) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-9)
    np.testing.assert_array_equal(metrics["t"], call.t)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-10)
    assert call.dropout_key is not None


def test_float32_and_split() -> None:
    """Each example has its own key: halves of a batch average to the whole."""
    loss = jax.jit(make_denoising_loss(Recorder(), cosine()))
    batch, keys, params = make_batch(8), make_keys(8), parameters(0.7, -0.3)
    value, _ = loss(params, batch, keys, STEP, {})
    assert value.dtype == jnp.float32
    halves = [
        loss(params, {**batch, "image": batch["image"][h]}, keys[h], STEP, {})[0]
        for h in (slice(0, 4), slice(4, 8))
    ]
    np.testing.assert_allclose(np.mean(halves), value, rtol=1e-6)


def test_gradient_is_finite_everywhere() -> None:
    loss = make_denoising_loss(Recorder(), cosine())
    batch, keys = make_batch(64), make_keys(64)
    gradient = jax.jit(jax.grad(lambda p: loss(p, batch, keys, STEP, {})[0]))
    assert all(map(jnp.isfinite, gradient(parameters(0.5, 0.1)).values()))
