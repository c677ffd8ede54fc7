"""Attention of every position to all, in a form that is fast on CPUs and TPUs.

    y = (e v) / sum(e),   e = exp(q k^T / sqrt(head_dim) - max)

On CPUs and TPUs the division comes after the second product, where there are fewer
numbers, and no gradient passes the maximum, which cancels. Backwards e is all that is
kept of [tokens, tokens]. Other platforms get JAX's own form.

Heads come before tokens, the order in which both products read. A barrier keeps it so:
TPUs' compiler otherwise moves the transposition into [tokens, tokens].
"""

import math

import jax
import jax.numpy as jnp


@jax.jit
def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """q, k, v: [batch, heads, tokens, head_dim] of one dtype; returns the same shape.
    The softmax is float32."""
    return jax.lax.platform_dependent(
        q, k, v, cpu=_by_products, tpu=_by_products, default=_by_jax
    )


def _by_products(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    q, k, v = jax.lax.optimization_barrier((q, k, v))
    q = q * (1 / math.sqrt(q.shape[-1]))
    logits = jnp.einsum("bnth,bnsh->bnts", q, k, preferred_element_type=_wide(q))
    most = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    e = jnp.exp(logits - most)
    y = jnp.einsum(
        "bnts,bnsh->bnth", e.astype(v.dtype), v, preferred_element_type=_wide(q)
    )
    y = (y / e.sum(-1, keepdims=True)).astype(v.dtype)
    return jax.lax.optimization_barrier(y)


def _by_jax(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    q, k, v = (part.swapaxes(1, 2) for part in (q, k, v))
    y = jax.nn.dot_product_attention(q, k, v, implementation="xla")
    return y.swapaxes(1, 2)


def _wide(q: jax.Array) -> jnp.dtype:
    return jnp.promote_types(q.dtype, jnp.float32)
