"""Classifier-free guidance of a denoiser, at all times or within an interval of t.

With w the scale (Ho and Salimans 2022),

    x_guided = (1 + w) x_hat(z_t, t, label) - w x_hat(z_t, t, no class)

which is the denoiser of q(z_t) q(label | z_t)^(1 + w). Kynkäänniemi et al. 2024
(arXiv 2404.07724) guide only where the noise is neither high nor low: here where
low <= t <= high. Their weight is 1 + w.
"""

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from multistep_cm.diffusion.parameterization import (
    Conditioning,
    Denoiser,
    per_example,
)

Interval: TypeAlias = tuple[float, float]
"""The times t that are guided, from low to high, both included."""

ALWAYS: Interval = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How a denoiser is guided.

    Attributes:
        scale: w; 0 is no guidance.
        null_label: what the denoiser knows as "no class".
        interval: where it is guided.
    """

    scale: float = 0.0
    null_label: int = 0
    interval: Interval = ALWAYS


def guided(
    x_conditional: jax.Array, x_unconditional: jax.Array, scale: ArrayLike
) -> jax.Array:
    """(1 + scale) x_conditional - scale x_unconditional; scale 0 is no guidance.

    `scale` () or [batch].
    """
    w = scale if isinstance(scale, float) else per_example(scale, x_conditional)
    return x_conditional + w * (x_conditional - x_unconditional)


def scale_at(
    t: jax.Array, guidance: Guidance, scale: jax.Array | None = None
) -> ArrayLike:
    """The scale at each time: `guidance.scale`, or the `scale` [batch] that is given,
    within the interval, 0 outside."""
    inside: ArrayLike = guidance.scale if scale is None else scale
    if guidance.interval == ALWAYS:
        return inside
    low, high = guidance.interval
    return jnp.where((low <= t) & (t <= high), inside, 0.0).astype(t.dtype)


def null_condition(cond: Conditioning, null_label: int) -> Conditioning:
    """The conditioning without what it tells: "no class", and captions all masked.

    Raises ValueError when it holds neither "label" nor "text_mask".
    """
    null = {}
    if "label" in cond:
        null["label"] = jnp.full_like(cond["label"], null_label)
    if "text_mask" in cond:
        null["text_mask"] = jnp.zeros_like(cond["text_mask"])
    if not null:
        raise ValueError("guidance needs a label or caption; cond holds none")
    return {**cond, **null}


def predict_pair(
    denoiser: Denoiser,
    guidance: Guidance,
    z_t: jax.Array,
    t: jax.Array,
    cond: Conditioning,
) -> tuple[jax.Array, jax.Array]:
    """x_hat with label and caption and without, from one call of twice the batch.

    Every example stands beside its twin without label, not a batch beside a batch: cut
    over devices, both halves of each pair are where the example is, and nothing moves.
    Raises ValueError when the conditioning holds neither "label" nor "text_mask".
    """
    null = null_condition(cond, guidance.null_label)

    def twin(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.stack([a, b], 1).reshape(2 * a.shape[0], *a.shape[1:])

    both = jax.tree.map(twin, dict(cond), null)
    x_hat = denoiser(twin(z_t, z_t), twin(t, t), both)
    pairs = x_hat.reshape(z_t.shape[0], 2, *z_t.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def predict_guided(
    denoiser: Denoiser,
    guidance: Guidance,
    z_t: jax.Array,
    t: jax.Array,
    cond: Conditioning,
) -> tuple[jax.Array, jax.Array]:
    """x_hat without guidance and with it, [batch, ...]; of scale 0, one call's twice.

    The first is what x_var of aDDIM is measured on. Times may differ in the batch. A
    "guidance" [batch] in the conditioning is each example's own scale, in the place of
    `guidance.scale`; the denoiser is not told it.
    """
    own = cond.get("guidance")
    told = {key: value for key, value in cond.items() if key != "guidance"}
    if own is None and guidance.scale == 0.0:
        x_hat = denoiser(z_t, t, cond)
        return x_hat, x_hat
    x_hat, x_null = predict_pair(denoiser, guidance, z_t, t, told)
    return x_hat, guided(x_hat, x_null, scale_at(t, guidance, own))


def guided_denoiser(
    denoiser: Denoiser, scale: float, null_label: int, interval: Interval = ALWAYS
) -> Denoiser:
    """A denoiser with guidance; both predictions come from one call of twice the batch.

    `denoiser` must know `null_label` as "no class". Scale 0 returns it unchanged. Where
    no time of a batch is within `interval`, as in a sampler's steps outside of it, the
    call is that of the denoiser alone.
    Raises ValueError when the conditioning holds neither "label" nor "text_mask".
    """
    guidance = Guidance(scale, null_label, interval)
    if scale == 0.0:
        return denoiser

    def denoise(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        def full() -> jax.Array:
            return predict_guided(denoiser, guidance, z_t, t, cond)[1]

        if interval == ALWAYS:
            return full()
        inside = jnp.any(jnp.asarray(scale_at(t, guidance)) != 0)
        return jax.lax.cond(inside, full, lambda: denoiser(z_t, t, cond))

    return denoise
