"""Attention as CPUs and TPUs do it, against float64 and a plain softmax's gradients."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.models.attention import attend

RNG = np.random.default_rng(0)
SHAPE = (2, 3, 12, 8)

Attention: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def draw() -> np.ndarray:
    return RNG.normal(size=SHAPE).astype(np.float32)


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    logits = np.einsum("bhnd,bhmd->bhnm", q, k, dtype=np.float64) / np.sqrt(SHAPE[-1])
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhnm,bhmd->bhnd", e / e.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("scale", [1.0, 100.0], ids=["usual", "beyond_exp"])
def test_values_are_those_of_the_formula(scale: float) -> None:
    q, k, v = scale * draw(), draw(), draw()
    got = jax.jit(attend)(q, k, v)
    np.testing.assert_allclose(got, exact(q, k, v), atol=1e-5 * scale)


def test_gradients_are_those_of_a_plain_softmax(x64: None) -> None:
    """In float64, so that a gradient through the maximum would show."""
    q, k, v, y = (draw().astype(np.float64) for _ in range(4))

    def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        logits = jnp.einsum("bhnd,bhmd->bhnm", q, k) / np.sqrt(SHAPE[-1])
        return jnp.einsum("bhnm,bhmd->bhnd", jax.nn.softmax(logits), v)

    def gradient(function: Attention) -> tuple[jax.Array, ...]:
        def product(*sides: jax.Array) -> jax.Array:
            return jnp.vdot(y, function(*sides))

        return jax.jit(jax.grad(product, argnums=(0, 1, 2)))(q, k, v)

    for got, want in zip(gradient(attend), gradient(plain), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_bfloat16_stays_bfloat16_and_near() -> None:
    q, k, v = (jnp.asarray(draw(), jnp.bfloat16) for _ in range(3))
    got = jax.jit(attend)(q, k, v)
    assert got.dtype == jnp.bfloat16
    want = exact(*(np.asarray(side, np.float64) for side in (q, k, v)))
    np.testing.assert_allclose(got.astype(np.float32), want, atol=0.03)
