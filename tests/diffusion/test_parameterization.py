"""v, x and eps, and the forward process."""

from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.diffusion import parameterization
from multistep_cm.diffusion.schedules import cosine
from tests.diffusion import reference

SHAPE = (5, 3, 2, 1)
RANDOM = np.random.default_rng(0)
X, EPS = RANDOM.normal(size=(2, *SHAPE))
TIMES = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
KINDS = get_args(parameterization.Prediction)


def test_forward_process(x64: None) -> None:
    logsnr = reference.logsnr(TIMES)
    column = logsnr.reshape(-1, 1, 1, 1)
    expected = reference.alpha(column) * X + reference.sigma(column) * EPS
    found = parameterization.add_noise(jnp.asarray(X), jnp.asarray(EPS), logsnr)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    scalar = parameterization.add_noise(jnp.asarray(X), jnp.asarray(EPS), logsnr[1])
    np.testing.assert_allclose(scalar[1], expected[1], rtol=0, atol=1e-12)


def test_predictions_of_known_signal_and_noise(x64: None) -> None:
    logsnr = reference.logsnr(TIMES)
    column = logsnr.reshape(-1, 1, 1, 1)
    alpha, sigma = reference.alpha(column), reference.sigma(column)
    z_t = alpha * X + sigma * EPS
    expected = {"v": alpha * EPS - sigma * X, "x": X, "eps": EPS}
    for kind in KINDS:
        prediction = parameterization.from_x(X, z_t, logsnr, kind)
        np.testing.assert_allclose(prediction, expected[kind], rtol=0, atol=1e-10)
        x_hat = parameterization.to_x(expected[kind], z_t, logsnr, kind)
        np.testing.assert_allclose(x_hat, X, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_stays_finite(kind: parameterization.Prediction) -> None:
    x, eps = jnp.asarray(X, jnp.bfloat16), jnp.asarray(EPS, jnp.bfloat16)
    logsnr = cosine().logsnr(TIMES)
    z_t = parameterization.add_noise(x, eps, logsnr)
    prediction = parameterization.from_x(x, z_t, logsnr, kind)
    x_hat = parameterization.to_x(prediction, z_t, logsnr, kind)
    for value in (z_t, prediction, x_hat):
        assert value.dtype == jnp.bfloat16
        assert jnp.all(jnp.isfinite(value))


def test_unknown_kind() -> None:
    for function in (parameterization.to_x, parameterization.from_x):
        with pytest.raises(ValueError, match="'noise', expected 'v', 'x' or 'eps'"):
            function(jnp.zeros(SHAPE), jnp.zeros(SHAPE), 0.0, "noise")  # type: ignore[arg-type]
