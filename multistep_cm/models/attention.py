"""Attention of every position to all, in a form that is fast on CPUs and TPUs.

    y = (e v) / sum(e),   e = exp(q k^T / sqrt(head_dim) - max)

On CPUs and TPUs the division comes after the second product, where there are fewer
numbers, and no gradient passes the maximum, which cancels. Other platforms get JAX's
own form.

On TPUs, of many tokens, neither e nor the logits reach memory on the way forwards:
their compiler joins two products to one piece of work if nothing else reads what is
between them. So a limit that is known before takes the place of the maximum, and the
second product sums e itself, by columns of ones beside v. Backwards e is made once
more, and kept in the dtype of v.

Heads come before tokens, the order in which both products read. A barrier keeps it so:
TPUs' compiler otherwise moves the transposition into [tokens, tokens].
"""

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from multistep_cm.models.keeping import KEPT
from multistep_cm.models.platforms import by_platform

MANY_TOKENS = 512
"""From here on scores are too many for a TPU's own memory."""
LARGEST = 70.0
"""Logits up to which exp needs no shift: e^70 times the tokens is far from infinity."""
LEAST = 1e-30
"""Of a sum that divides."""


@jax.jit
def attend(q: jax.Array, k: jax.Array, v: jax.Array, limit: jax.Array) -> jax.Array:
    """q, k, v: [batch, heads, tokens, head_dim] of one dtype; returns the same shape.
    The softmax is float32.

    limit: a scalar that no logit q k / sqrt(head_dim) exceeds by more than rounding. On
    TPUs a position all of whose logits are 140 below it may get nothing.
    """
    many = q.shape[2] >= MANY_TOKENS
    return by_platform(
        q,
        k,
        v,
        limit,
        cpu=_by_products,
        tpu=attend_fused if many else _by_products,
        default=_by_jax,
    )


def _by_products(
    q: jax.Array, k: jax.Array, v: jax.Array, limit: jax.Array
) -> jax.Array:
    q, k, v = jax.lax.optimization_barrier((q, k, v))
    q = q * (1 / math.sqrt(q.shape[-1]))
    logits = _product("bnth,bnsh->bnts", q, k)
    most = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    e = jnp.exp(logits - most)
    y = _product("bnts,bnsh->bnth", e.astype(v.dtype), v)
    y = (y / e.sum(-1, keepdims=True)).astype(v.dtype)
    return jax.lax.optimization_barrier(y)


def _by_jax(q: jax.Array, k: jax.Array, v: jax.Array, limit: jax.Array) -> jax.Array:
    q, k, v = (part.swapaxes(1, 2) for part in (q, k, v))
    y = jax.nn.dot_product_attention(q, k, v, implementation="xla")
    return y.swapaxes(1, 2)


def attend_fused(
    q: jax.Array, k: jax.Array, v: jax.Array, limit: jax.Array
) -> jax.Array:
    """`attend` in the form for TPUs and many tokens; reverse mode only."""
    q, k, v = jax.lax.optimization_barrier((q, k, v))
    q = q * (1 / math.sqrt(q.shape[-1]))
    shift = jax.lax.stop_gradient(jnp.maximum(limit - LARGEST, 0.0))
    return jax.lax.optimization_barrier(_fused(q, k, v, shift))


@jax.custom_vjp
def _fused(q: jax.Array, k: jax.Array, v: jax.Array, shift: jax.Array) -> jax.Array:
    return _fused_sums(q, k, v, shift)[0]


def _fused_sums(
    q: jax.Array, k: jax.Array, v: jax.Array, shift: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """y, and sums of e [batch, heads, tokens, 1]."""
    head_dim = v.shape[-1]
    e = _scores(q, k, shift).astype(v.dtype)
    with_ones = jnp.concatenate([v, jnp.ones_like(v)], -1)
    both = _product("bnts,bnsh->bnth", e, with_ones)
    sums = jnp.maximum(both[..., head_dim : head_dim + 1], LEAST)
    return (both[..., :head_dim] / sums).astype(v.dtype), sums


def _scores(q: jax.Array, k: jax.Array, shift: jax.Array) -> jax.Array:
    return jnp.exp(_product("bnth,bnsh->bnts", q, k) - shift)


def _fused_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, shift: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    y, sums = _fused_sums(q, k, v, shift)
    y, sums = checkpoint_name(y, KEPT), checkpoint_name(sums, KEPT)
    return y, (q, k, v, shift, y, sums)


def _fused_backward(
    kept: tuple[jax.Array, ...], y_bar: jax.Array
) -> tuple[jax.Array | None, ...]:
    """With w = y_bar / sum(e):  v_bar = e^T w,  q_bar = l_bar k,  k_bar = l_bar^T q,
    l_bar = e (w v^T - w y)."""
    q, k, v, shift, y, sums = kept
    w = y_bar.astype(sums.dtype) / sums
    w_y = (w * y).sum(-1, keepdims=True)
    w = w.astype(v.dtype)
    e = jax.lax.optimization_barrier(_scores(q, k, shift).astype(v.dtype))
    v_bar = _product("bnts,bnth->bnsh", e, w)

    def logits_bar(w: jax.Array, v: jax.Array) -> jax.Array:
        return (e * (_product("bnth,bnsh->bnts", w, v) - w_y)).astype(v.dtype)

    q_bar = _product("bnts,bnsh->bnth", logits_bar(w, v), k)
    # Behind a barrier it is made again in the second product, not kept for it.
    k_bar = _product(
        "bnts,bnth->bnsh", logits_bar(*jax.lax.optimization_barrier((w, v))), q
    )
    return (
        q_bar.astype(q.dtype),
        k_bar.astype(k.dtype),
        v_bar.astype(v.dtype),
        jnp.zeros_like(shift),
    )


_fused.defvjp(_fused_forward, _fused_backward)


def _product(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """In at least float32."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(formula, a, b, preferred_element_type=wide)
