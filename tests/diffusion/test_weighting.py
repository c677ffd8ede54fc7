"""Weights, the Huber norm and the multiscale loss."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistep_cm.diffusion import weighting
from multistep_cm.diffusion.schedules import cosine
from tests.diffusion import reference

RANDOM = np.random.default_rng(2)
DIFFERENCE = RANDOM.normal(size=(3, 4, 4, 2)) * np.array([1.0, 1e-3, 1e-6]).reshape(
    3, 1, 1, 1
)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("snr_plus_1", lambda snr: snr + 1),
        ("sqrt_snr_plus_1", lambda snr: np.sqrt(snr + 1)),
        ("truncated_snr", lambda snr: np.maximum(snr, 1)),
        ("uniform", np.ones_like),
    ],
)
def test_weights(name: weighting.Weight, formula: object) -> None:
    logsnr = reference.logsnr(np.linspace(0, 1, 9))
    snr = (reference.alpha(logsnr) / reference.sigma(logsnr)) ** 2
    assert callable(formula)
    found = weighting.loss_weight(name, jnp.asarray(logsnr, jnp.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, formula(snr), rtol=1e-5)


def test_every_weight_is_finite_at_the_ends() -> None:
    for name in get_args(weighting.Weight):
        logsnr = cosine().logsnr(jnp.array([0.0, 1.0]))
        weight = weighting.loss_weight(name, logsnr, logsnr + 1e-3)
        assert jnp.all(jnp.isfinite(weight) & (weight > 0))


def test_inverse_gap(x64: None) -> None:
    """1 / (sigma_t / alpha_t - sigma_s / alpha_s), also between close neighbours."""
    t, s = np.array([1e-3, 0.3, 1.0]), np.array([0.0, 0.2999, 0.5])
    lt, ls = reference.logsnr(t), reference.logsnr(s)
    gap = reference.sigma(lt) / reference.alpha(lt)
    gap -= reference.sigma(ls) / reference.alpha(ls)
    found = weighting.loss_weight("inverse_gap", jnp.asarray(lt), jnp.asarray(ls))
    np.testing.assert_allclose(found, 1 / gap, rtol=1e-9)
    with pytest.raises(ValueError, match="needs logsnr_s"):
        weighting.loss_weight("inverse_gap", jnp.asarray(lt))


def test_squared_and_pseudo_huber(x64: None) -> None:
    r = reference.rms(DIFFERENCE)
    found = weighting.difference_norm(jnp.asarray(DIFFERENCE), 1.0, "squared")
    np.testing.assert_allclose(found, r**2, rtol=1e-10)
    # c = 0.00054 sqrt(d) on the plain l2 norm, divided by sqrt(d).
    d = DIFFERENCE[0].size
    c = 0.00054 * np.sqrt(d)
    norm = np.sqrt(np.sum(DIFFERENCE**2, axis=(1, 2, 3)) + c**2) - c
    found = weighting.difference_norm(jnp.asarray(DIFFERENCE), 5.4e-4, "pseudo_huber")
    np.testing.assert_allclose(found, norm / np.sqrt(d), rtol=1e-7)


def test_mean_square(x64: None) -> None:
    expected = [np.sum(d**2) / d.size for d in DIFFERENCE]
    np.testing.assert_allclose(weighting.mean_square(jnp.asarray(DIFFERENCE)), expected)


@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 1.0])
def test_huber_per_example(x64: None, epsilon: float) -> None:
    expected = reference.huber(reference.rms(DIFFERENCE), epsilon)
    found = weighting.difference_norm(jnp.asarray(DIFFERENCE), epsilon, "example")
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 1.0])
def test_huber_per_element(x64: None, epsilon: float) -> None:
    values = reference.huber(np.abs(DIFFERENCE), epsilon)
    found = weighting.difference_norm(jnp.asarray(DIFFERENCE), epsilon, "element")
    np.testing.assert_allclose(found, values.mean(axis=(1, 2, 3)), rtol=1e-10)


@given(scale=st.floats(1e-6, 1e3), epsilon=st.sampled_from([1e-4, 0.1, 1.0]))
def test_huber_and_its_slope_in_float32(scale: float, epsilon: float) -> None:
    """With one element, r is its size: value and slope are Huber's own."""

    @jax.jit
    def of(r: jax.Array) -> jax.Array:
        return weighting.difference_norm(r.reshape(1, 1), epsilon, "example")[0]

    value, slope = jax.value_and_grad(of)(jnp.float32(scale))
    expected = float(reference.huber(scale, epsilon))
    np.testing.assert_allclose(float(value), expected, rtol=1e-4)
    np.testing.assert_allclose(float(slope), min(scale / epsilon, 1.0), rtol=1e-4)


@pytest.mark.parametrize("norm", ["example", "element"])
def test_gradient_is_continuous_and_zero_at_zero(norm: weighting.Norm) -> None:
    def total(difference: jax.Array) -> jax.Array:
        return weighting.difference_norm(difference, 1e-4, norm).sum()

    zero = jnp.zeros((2, 3, 3, 1))
    assert total(zero) == 0
    np.testing.assert_array_equal(jax.grad(total)(zero), zero)
    below, above = (jax.grad(total)(zero + 1e-4 * f) for f in (1 - 1e-4, 1 + 1e-4))
    np.testing.assert_allclose(below, above, rtol=1e-3)


@pytest.mark.parametrize("norm", ["example", "element"])
def test_large_epsilon_is_half_the_squared_norm(norm: weighting.Norm) -> None:
    difference = jnp.asarray(DIFFERENCE, jnp.float32)
    found = weighting.difference_norm(difference, 100.0, norm) * 2 * 100.0
    np.testing.assert_allclose(found, weighting.mean_square(difference), rtol=1e-5)


def literal_multiscale(
    difference: reference.Array, epsilon: float, pools: int
) -> reference.Array:
    total, weights = np.zeros(len(difference)), 0.0
    resolution = difference.shape[1]
    for _ in range(pools + 1):
        side = difference.shape[1]
        weight = resolution / side  # simple diffusion: 1 / resolution
        total += weight * reference.huber(reference.rms(difference), epsilon)
        weights += weight
        pooled = np.zeros((len(difference), side // 2, side // 2, 2))
        for row in range(side // 2):
            for col in range(side // 2):
                tile = difference[:, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
                pooled[:, row, col] = tile.mean(axis=(1, 2))
        difference = pooled
    return total / weights


@pytest.mark.parametrize("pools", [0, 1, 2])
def test_multiscale(x64: None, pools: int) -> None:
    found = weighting.multiscale_norm(jnp.asarray(DIFFERENCE), 1e-4, "example", pools)
    expected = literal_multiscale(DIFFERENCE, 1e-4, pools)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_multiscale_sees_the_mean_and_not_the_checkerboard() -> None:
    board = jnp.indices((4, 4)).sum(0) % 2 * 2.0 - 1.0
    images = jnp.stack([board, jnp.ones((4, 4))])[..., None]
    plain = weighting.multiscale_norm(images, 1e-4, "example", 0)
    pooled = weighting.multiscale_norm(images, 1e-4, "example", 1)
    np.testing.assert_allclose(plain[0], plain[1], rtol=1e-6)
    np.testing.assert_allclose(pooled[1] / pooled[0], 3.0, rtol=1e-4)


def test_low_precision_stays_finite() -> None:
    difference = jnp.asarray(DIFFERENCE, jnp.bfloat16)
    for norm in get_args(weighting.Norm):
        found = weighting.multiscale_norm(difference, 1e-4, norm, 1)
        assert jnp.all(jnp.isfinite(found))


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match=r"weight is 'snr', expected one of \('snr_plus_1'"
    ):
        weighting.loss_weight("snr", jnp.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"norm is 'l1', expected one of \('example'"):
        weighting.difference_norm(jnp.zeros((1, 1)), 1.0, "l1")  # type: ignore[arg-type]
