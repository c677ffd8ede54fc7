"""One-step maps against the paper's formulas in numpy float64, and identities."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistep_cm.diffusion import ddim
from multistep_cm.diffusion.schedules import cosine, interpolated_cosine
from tests.diffusion import reference

SHAPE = (4, 2, 3, 1)
RANDOM = np.random.default_rng(1)
X, Z, NOISE = RANDOM.normal(size=(3, *SHAPE))
T = np.array([1.0, 0.75, 0.3, 1 / 64])
S = np.array([0.5, 0.74, 0.0, 0.0])
X_VAR = np.array([0.0, 0.2, 1.0, 0.05])
# Compiled as in training, and faster to test than one operation at a time.
ddim_step = jax.jit(ddim.ddim_step)
inverse_ddim = jax.jit(ddim.inverse_ddim)
addim_step = jax.jit(ddim.addim_step)
addim_effective_x = jax.jit(ddim.addim_effective_x)
heun_effective_x = jax.jit(ddim.heun_effective_x)
ancestral_step = jax.jit(ddim.ancestral_step)
x_variance = jax.jit(ddim.x_variance)
x_variance_analytic = jax.jit(ddim.x_variance_analytic)

LOGSNR = jax.jit(interpolated_cosine(32, 64, 64).logsnr)

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
DTYPES = list(TOLERANCE)


def column(values: reference.Array) -> reference.Array:
    return values.reshape(-1, 1, 1, 1)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test of this file in both precisions."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def given_values(dtype: str) -> tuple[jax.Array, ...]:
    """x, z_t, and the log-SNR at t and s, in one precision."""
    logsnr_t, logsnr_s = reference.logsnr(T), reference.logsnr(S)
    return tuple(jnp.asarray(value, dtype) for value in (X, Z, logsnr_t, logsnr_s))


def assert_equals(found: jax.Array, expected: object, dtype: str) -> None:
    assert found.dtype == dtype
    limit = TOLERANCE[dtype]
    np.testing.assert_allclose(found, np.asarray(expected), rtol=limit, atol=limit)


def test_ddim_is_equation_4(dtype: str) -> None:
    x, z, logsnr_t, logsnr_s = given_values(dtype)
    expected = reference.ddim(
        X, Z, column(reference.logsnr(T)), column(reference.logsnr(S))
    )
    assert_equals(ddim_step(x, z, logsnr_t, logsnr_s), expected, dtype)


def test_inverse_is_equation_5(dtype: str) -> None:
    x, z, logsnr_t, logsnr_s = given_values(dtype)
    z_s = ddim_step(x, z, logsnr_t, logsnr_s)
    # The neighbours 0.75 and 0.74 lose two digits in float32, as any inverse does.
    loose = 30 if dtype == "float32" else 1
    found = inverse_ddim(z_s, z, logsnr_t, logsnr_s)
    limit = loose * TOLERANCE[dtype]
    np.testing.assert_allclose(found, X, rtol=0, atol=limit)
    literal = reference.inverse_ddim(
        np.asarray(z_s, np.float64),
        Z,
        column(reference.logsnr(T)),
        column(reference.logsnr(S)),
    )
    np.testing.assert_allclose(found, literal, rtol=0, atol=limit)


@given(t=st.floats(0.06, 1.0), gap=st.floats(0.05, 1.0))
def test_inverse_undoes_ddim(t: float, gap: float) -> None:
    s = max(t - gap, 0.0)
    logsnr_t, logsnr_s = LOGSNR(jnp.array([t, s]))
    x, z = jnp.asarray(X, jnp.float32), jnp.asarray(Z, jnp.float32)
    z_s = ddim_step(x, z, logsnr_t, logsnr_s)
    x_again = inverse_ddim(z_s, z, logsnr_t, logsnr_s)
    np.testing.assert_allclose(x_again, x, rtol=0, atol=2e-5)
    z_again = ddim_step(x_again, z, logsnr_t, logsnr_s)
    np.testing.assert_allclose(z_again, z_s, rtol=0, atol=2e-6)


def test_ddim_to_the_same_time_stays(dtype: str) -> None:
    x, z, logsnr_t, _ = given_values(dtype)
    assert_equals(ddim_step(x, z, logsnr_t, logsnr_t), z, dtype)
    stays = addim_step(x, z, logsnr_t, logsnr_t, jnp.asarray(X_VAR, dtype))
    assert_equals(stays, z, dtype)


def test_ddim_steps_along_one_x_compose(dtype: str) -> None:
    """A DDIM path with x held fixed is a straight line: two steps are one."""
    x, z, logsnr_t, logsnr_s = given_values(dtype)
    middle = 0.4 * logsnr_t + 0.6 * logsnr_s
    z_middle = ddim_step(x, z, logsnr_t, middle)
    twice = ddim_step(x, z_middle, middle, logsnr_s)
    assert_equals(twice, ddim_step(x, z, logsnr_t, logsnr_s), dtype)


def test_addim_is_algorithm_3(dtype: str) -> None:
    x, z, logsnr_t, logsnr_s = given_values(dtype)
    expected = reference.addim(
        X, Z, column(reference.logsnr(T)), column(reference.logsnr(S)), column(X_VAR)
    )
    found = addim_step(x, z, logsnr_t, logsnr_s, jnp.asarray(X_VAR, dtype))
    assert_equals(found, expected, dtype)


def test_addim_without_variance_is_ddim(dtype: str) -> None:
    x, z, logsnr_t, logsnr_s = given_values(dtype)
    found = addim_step(x, z, logsnr_t, logsnr_s, 0.0)
    assert_equals(found, ddim_step(x, z, logsnr_t, logsnr_s), dtype)


def test_addim_norm_of_the_noise(dtype: str) -> None:
    """The noise part of z_s has mean square sigma_s^2 ||e||^2 / d + z_var."""
    x, z, logsnr_t, logsnr_s = given_values(dtype)
    z_s = addim_step(x, z, logsnr_t, logsnr_s, jnp.asarray(X_VAR, dtype))
    lt, ls = column(reference.logsnr(T)), column(reference.logsnr(S))
    e_hat = (Z - reference.alpha(lt) * X) / reference.sigma(lt)
    ratio = reference.sigma(ls) / reference.sigma(lt)
    z_var = (reference.alpha(ls) - reference.alpha(lt) * ratio) ** 2 * column(X_VAR)
    expected = np.mean((reference.sigma(ls) * e_hat) ** 2 + z_var, axis=(1, 2, 3))
    noise = np.asarray(z_s, np.float64) - reference.alpha(ls) * X
    found = np.mean(noise**2, axis=(1, 2, 3))
    np.testing.assert_allclose(found, expected, rtol=10 * TOLERANCE[dtype])


def test_addim_does_not_mix_examples(dtype: str) -> None:
    """Batch order and split change nothing, so the norm is each example's own."""
    x, z, logsnr_t, logsnr_s = given_values(dtype)
    x_var = jnp.asarray(X_VAR, dtype)
    z = z * jnp.array([1.0, 7.0, 0.1, 3.0], dtype).reshape(-1, 1, 1, 1)
    whole = addim_step(x, z, logsnr_t, logsnr_s, x_var)
    order = jnp.array([2, 0, 3, 1])
    shuffled = addim_step(
        x[order], z[order], logsnr_t[order], logsnr_s[order], x_var[order]
    )
    assert_equals(shuffled, whole[order], dtype)
    alone = [
        addim_step(
            x[i : i + 1], z[i : i + 1], logsnr_t[i], logsnr_s[i], x_var[i : i + 1]
        )
        for i in range(4)
    ]
    assert_equals(jnp.concatenate(alone), whole, dtype)


def test_effective_x_makes_the_same_step(dtype: str) -> None:
    x, z, logsnr_t, logsnr_s = given_values(dtype)
    x_var = jnp.asarray(X_VAR, dtype)
    x_effective = addim_effective_x(x, z, logsnr_t, logsnr_s, x_var)
    assert_equals(x_effective[0], X[0], dtype)  # x_var is 0 there
    lt, ls = column(reference.logsnr(T)), column(reference.logsnr(S))
    z_s = reference.addim(X, Z, lt, ls, column(X_VAR))
    expected = reference.inverse_ddim(z_s, Z, lt, ls)
    assert_equals(x_effective, expected, dtype)


@pytest.mark.parametrize("x_var", [0.05, 5.0])
def test_addim_with_no_noise_left_is_ddim(x_var: float) -> None:
    """e_hat = 0 has no direction to stretch: no division by zero, no overflow."""
    zero = jnp.zeros((2, 3))
    logsnr_t, logsnr_s = cosine().logsnr(1.0), cosine().logsnr(0.0)
    assert jnp.all(addim_step(zero, zero, logsnr_t, logsnr_s, x_var) == 0)
    tiny = zero + 1e-18
    found = addim_step(zero, tiny, logsnr_t, logsnr_s, x_var)
    assert jnp.all(jnp.isfinite(found))


def test_x_variance(dtype: str) -> None:
    x, z, _, _ = given_values(dtype)
    expected = 0.75 * np.sum((X - Z) ** 2, axis=(1, 2, 3)) / X[0].size
    assert_equals(x_variance(x, z, 0.75), expected, dtype)


def test_analytic_x_variance(dtype: str) -> None:
    logsnr = reference.logsnr(T)
    snr = reference.alpha(logsnr) ** 2 / reference.sigma(logsnr) ** 2
    found = x_variance_analytic(jnp.asarray(logsnr, dtype))
    assert_equals(found, 0.1 / (2 + snr), dtype)


def test_heun_is_the_trapezoid_in_sigma_over_alpha(dtype: str) -> None:
    """Karras et al.: y = z / alpha moves by the mean of e_hat at both ends."""
    x, z, logsnr_t, logsnr_s = given_values(dtype)
    lt, ls = column(reference.logsnr(T)), column(reference.logsnr(S))
    z_euler = reference.ddim(X, Z, lt, ls)
    x_s = np.tanh(z_euler)
    e_t = (Z - reference.alpha(lt) * X) / reference.sigma(lt)
    e_s = (z_euler - reference.alpha(ls) * x_s) / reference.sigma(ls)
    distance = np.exp(-ls / 2) - np.exp(-lt / 2)
    y_s = Z / reference.alpha(lt) + distance * (e_t + e_s) / 2
    effective = heun_effective_x(x, jnp.asarray(x_s, dtype), logsnr_t, logsnr_s)
    found = ddim_step(effective, z, logsnr_t, logsnr_s)
    assert_equals(found, reference.alpha(ls) * y_s, dtype)


def test_ancestral_step_is_the_posterior(dtype: str) -> None:
    """Drawing z_s from q(z_s | z_t, x) where z_t ~ q(z_t | x) gives q(z_s | x)."""
    x, z, logsnr_t, logsnr_s = given_values(dtype)
    zero, one = jnp.zeros_like(x), jnp.ones_like(x)
    of_x = ancestral_step(one, zero, logsnr_t, logsnr_s, zero)
    of_z = ancestral_step(zero, one, logsnr_t, logsnr_s, zero)
    of_noise = ancestral_step(zero, zero, logsnr_t, logsnr_s, one)
    lt, ls = column(reference.logsnr(T)), column(reference.logsnr(S))
    alpha_s, sigma_s = reference.alpha(ls), reference.sigma(ls)
    alpha_t, sigma_t = reference.alpha(lt), reference.sigma(lt)
    mean = np.broadcast_to(alpha_s, SHAPE)
    assert_equals(of_x + of_z * jnp.asarray(alpha_t, dtype), mean, dtype)
    variance = np.broadcast_to(sigma_s**2, SHAPE)
    jnp_sigma = jnp.asarray(sigma_t, dtype)
    assert_equals(of_z**2 * jnp_sigma**2 + of_noise**2, variance, dtype)
    # Bayes: precision of z_s is that of the prior q(z_s | x) plus that of the jump.
    jump = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    precision = 1 / sigma_s**2 + (alpha_t / alpha_s) ** 2 / jump
    assert_equals(of_noise, np.broadcast_to(precision**-0.5, SHAPE), dtype)
    total = ancestral_step(x, z, logsnr_t, logsnr_s, jnp.asarray(NOISE, dtype))
    assert_equals(total, of_x * x + of_z * z + of_noise * NOISE, dtype)


def test_sigma_ratio_of_neighbours() -> None:
    logsnr_t = jnp.float32(-15.0)
    expected = reference.sigma(-14.9) / reference.sigma(-15.0)
    found = ddim.sigma_ratio(jnp.float32(-14.9), logsnr_t)
    np.testing.assert_allclose(found, expected, rtol=1e-7)


STEPS = {
    "ddim": lambda x, z, t, s: ddim_step(x, z, t, s),
    "inverse": lambda x, z, t, s: inverse_ddim(x, z, t, s),
    "addim": lambda x, z, t, s: addim_step(x, z, t, s, 0.3),
    "addim_x": lambda x, z, t, s: addim_effective_x(x, z, t, s, 0.3),
    "heun_x": lambda x, z, t, s: heun_effective_x(x, z, t, s),
    "ancestral": lambda x, z, t, s: ancestral_step(x, z, t, s, z),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_dtype_in_is_dtype_out_and_finite(name: str, precision: str) -> None:
    x, z = jnp.asarray(X, precision), jnp.asarray(Z, precision)
    schedule = interpolated_cosine(32, 64, 64)
    for t, s in [(1.0, 0.0), (1.0, 0.99), (0.01, 0.0), (0.5, 0.25)]:
        logsnr_t, logsnr_s = schedule.logsnr(t), schedule.logsnr(s)
        found = STEPS[name](x, z, logsnr_t, logsnr_s)
        assert found.dtype == precision
        assert found.shape == SHAPE
        assert jnp.all(jnp.isfinite(found))


@pytest.mark.parametrize("name", STEPS)
def test_scalar_log_snr_equals_batch(name: str) -> None:
    x, z = jnp.asarray(X, jnp.float32), jnp.asarray(Z, jnp.float32)
    scalar = STEPS[name](x, z, -1.0, 2.0)
    batch = STEPS[name](x, z, jnp.full(4, -1.0), jnp.full(4, 2.0))
    np.testing.assert_allclose(scalar, batch, rtol=1e-6, atol=1e-6)
