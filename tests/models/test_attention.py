"""Attention as CPUs and TPUs do it, against float64 and a plain softmax's gradients."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.models.attention import attend, attend_fused

RNG = np.random.default_rng(0)
SHAPE = (2, 3, 12, 8)

Attention: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

FORMS = pytest.mark.parametrize("form", [attend, attend_fused], ids=["cpu", "tpu"])
"""That for TPUs is no other program on a CPU, only a slower one."""


def with_limit(form: Callable[..., jax.Array]) -> Attention:
    """The form, told the largest logit that vectors of these lengths can have."""

    def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        longest = [jnp.linalg.norm(side, axis=-1).max() for side in (q, k)]
        limit = longest[0] * longest[1] / np.sqrt(q.shape[-1])
        return form(q, k, v, limit.astype(jnp.float32))

    return attention


def draw() -> np.ndarray:
    return RNG.normal(size=SHAPE).astype(np.float32)


def normed(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True))


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    logits = np.einsum("bhnd,bhmd->bhnm", q, k, dtype=np.float64) / np.sqrt(SHAPE[-1])
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhnm,bhmd->bhnd", e / e.sum(-1, keepdims=True), v)


@FORMS
@pytest.mark.parametrize("scale", [1.0, 40.0], ids=["usual", "beyond_exp"])
def test_values_are_those_of_the_formula(
    form: Callable[..., jax.Array], scale: float
) -> None:
    """Of vectors of one length, as the norms before attention make them."""
    q, k, v = scale * normed(draw()), normed(draw()), draw()
    if scale > 1:
        assert np.einsum("bhnd,bhmd->bhnm", q, k).max() / np.sqrt(SHAPE[-1]) > 100
    got = jax.jit(with_limit(form))(q, k, v)
    np.testing.assert_allclose(got, exact(q, k, v), atol=1e-5 * scale)


def test_logits_far_beyond_exp() -> None:
    """Without a maximum there would be no number left of some rows."""
    q, k, v = 100.0 * draw(), draw(), draw()
    got = jax.jit(with_limit(attend))(q, k, v)
    np.testing.assert_allclose(got, exact(q, k, v), atol=1e-3)


@FORMS
def test_gradients_are_those_of_a_plain_softmax(
    form: Callable[..., jax.Array], x64: None
) -> None:
    """In float64, so that a gradient through the maximum or the limit would show."""
    q, k, v, y = (draw().astype(np.float64) for _ in range(4))

    def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        logits = jnp.einsum("bhnd,bhmd->bhnm", q, k) / np.sqrt(SHAPE[-1])
        return jnp.einsum("bhnm,bhmd->bhnd", jax.nn.softmax(logits), v)

    def gradient(function: Attention) -> tuple[jax.Array, ...]:
        def product(*sides: jax.Array) -> jax.Array:
            return jnp.vdot(y, function(*sides))

        return jax.jit(jax.grad(product, argnums=(0, 1, 2)))(q, k, v)

    form = with_limit(form)
    for got, want in zip(gradient(form), gradient(plain), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)


@FORMS
def test_bfloat16_stays_bfloat16_and_near(form: Callable[..., jax.Array]) -> None:
    q, k, v = (jnp.asarray(draw(), jnp.bfloat16) for _ in range(3))
    got = jax.jit(with_limit(form))(q, k, v)
    assert got.dtype == jnp.bfloat16
    want = exact(*(np.asarray(side, np.float64) for side in (q, k, v)))
    np.testing.assert_allclose(got.astype(np.float32), want, atol=0.03)
