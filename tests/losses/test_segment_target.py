"""The stable target against the literal one, and what it is for."""

import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.diffusion import ddim
from multistep_cm.losses.segments import segment_target
from tests.diffusion import reference

RANDOM = np.random.default_rng(5)
SHAPE = (6, 4, 4, 1)
X_REF, X_TEACHER, EPS = RANDOM.normal(size=(3, *SHAPE))


def column(values: reference.Array) -> reference.Array:
    return values.reshape(-1, 1, 1, 1)


def literal(
    z_t: reference.Array, logsnr: tuple[reference.Array, ...], x_var: reference.Array
) -> reference.Array:
    """invDDIM_{t->u}(DDIM_{s->u}(x_ref_hat, aDDIM_{t->s}(x_teacher, z_t)), z_t)."""
    lt, ls, lu = (column(value) for value in logsnr)
    z_s = reference.addim(X_TEACHER, z_t, lt, ls, column(x_var))
    z_u = np.where(ls == lu, z_s, reference.ddim(X_REF, z_s, ls, lu))
    return reference.inverse_ddim(z_u, z_t, lt, lu)


def stable(
    z_t: reference.Array,
    logsnr: tuple[reference.Array, ...],
    x_var: reference.Array,
    dtype: str,
) -> reference.Array:
    lt, ls, lu = (jnp.asarray(value, dtype) for value in logsnr)
    x_teacher, z_t_, x_ref = (jnp.asarray(v, dtype) for v in (X_TEACHER, z_t, X_REF))
    x_hop = ddim.addim_effective_x(x_teacher, z_t_, lt, ls, jnp.asarray(x_var, dtype))
    target = segment_target(x_ref, x_hop, lt, ls, lu)
    assert target.dtype == dtype
    return np.asarray(target, np.float64)


# t, s, t_step: inside segments, first sub-steps, whole range, ends of the range.
TIMES = np.array(
    [
        [0.5, 0.25, 0.0],
        [0.7, 0.65, 0.5],
        [0.25, 0.25 - 1 / 64, 0.25 - 1 / 64],
        [1.0, 0.0, 0.0],
        [1.0, 0.9, 0.75],
        [0.05, 0.03, 0.0],
    ]
).T


@pytest.mark.parametrize("eta", [0.0, 0.75])
def test_equals_the_literal_target(x64: None, eta: float) -> None:
    logsnr = tuple(reference.logsnr(times) for times in TIMES)
    lt = column(logsnr[0])
    z_t = reference.alpha(lt) * X_TEACHER + reference.sigma(lt) * EPS
    x_var = eta * np.mean((X_TEACHER - X_REF) ** 2, axis=(1, 2, 3))
    found = stable(z_t, logsnr, x_var, "float64")
    np.testing.assert_allclose(found, literal(z_t, logsnr, x_var), rtol=0, atol=1e-12)


def test_first_sub_step_is_the_hop_exactly() -> None:
    x_ref, x_hop = jnp.asarray(X_REF), jnp.asarray(X_TEACHER)
    logsnr_t = jnp.asarray(reference.logsnr(TIMES[0]), jnp.float32)
    logsnr_s = jnp.asarray(reference.logsnr(TIMES[1]), jnp.float32)
    target = segment_target(x_ref, x_hop, logsnr_t, logsnr_s, logsnr_s)
    np.testing.assert_array_equal(target, x_hop)


def test_float32_beats_the_literal_form_on_a_fine_grid() -> None:
    """T = 1280: the literal form in float32 errs by more than the Huber epsilon."""
    t = np.array([1280, 960, 900, 640, 321, 2]) / 1280
    t_step = np.array([0.75, 0.5, 0.5, 0.25, 0.25, 0.0])
    logsnr = tuple(reference.logsnr(times) for times in (t, t - 1 / 1280, t_step))
    lt = column(logsnr[0])
    z_t = reference.alpha(lt) * X_TEACHER + reference.sigma(lt) * EPS
    none = np.zeros(len(t))
    truth = literal(z_t, logsnr, none)
    error = np.abs(stable(z_t, logsnr, none, "float32") - truth).max()
    assert error < 1e-5

    single = tuple(jnp.asarray(value, jnp.float32) for value in logsnr)
    z, x, x_ref = (jnp.asarray(v, jnp.float32) for v in (z_t, X_TEACHER, X_REF))
    scales = [
        (jnp.sqrt(1 / (1 + jnp.exp(-v))), jnp.sqrt(1 / (1 + jnp.exp(v))))
        for v in single
    ]
    (a_t, s_t), (a_s, s_s), (a_u, s_u) = (
        tuple(w.reshape(-1, 1, 1, 1) for w in pair) for pair in scales
    )
    z_s = a_s * x + s_s / s_t * (z - a_t * x)
    z_u = a_u * x_ref + s_u / s_s * (z_s - a_s * x_ref)
    naive = (z_u - s_u / s_t * z) / (a_u - a_t * s_u / s_t)
    naive_error = np.abs(np.asarray(naive, np.float64) - truth).max()
    assert naive_error > 3e-5  # so the test above can tell
    assert naive_error > 10 * error
