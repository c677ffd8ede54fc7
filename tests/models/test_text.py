"""Captions in both networks: what is masked, what is mixed, what is new."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.models.layers import CrossAttention
from tests.models.networks import FAST, Inputs, inputs, network, random_params

LENGTH, WIDTH = 8, 5
KINDS = ("bytes", "precomputed")
NAMES = ("unet", "uvit")


def captions(kind: str, seed: int = 0) -> dict[str, jax.Array]:
    """Three captions: a whole one, one of 4 of 8, and none."""
    rng = np.random.default_rng(seed)
    mask = np.arange(LENGTH) < np.array([[LENGTH], [4], [0]])
    text: Any = rng.integers(256, size=(3, LENGTH)).astype(np.uint8)
    if kind == "precomputed":
        text = rng.normal(size=(3, LENGTH, WIDTH)).astype(np.float16)
    return {"text": jnp.asarray(text), "text_mask": jnp.asarray(mask)}


def example(kind: str, seed: int = 0) -> Inputs:
    z_t, t, cond = inputs()
    return z_t, t, {**cond, **captions(kind, seed)}


@cache
def applied(kind: Any, name: str, **changes: Any) -> tuple[Any, Any]:
    net = network(text=kind, name=name, **changes)
    params = random_params(net, example=example(kind))
    return params, jax.jit(net.apply, compiler_options=FAST)


def predict(kind: str, name: str, given: Inputs, **changes: Any) -> np.ndarray:
    params, apply = applied(kind, name, **changes)
    return np.asarray(apply({"params": params}, *given))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_caption_changes_the_image_and_what_is_masked_does_not(
    kind: str, name: str
) -> None:
    z_t, t, cond = example(kind)
    one = predict(kind, name, (z_t, t, cond))
    assert np.isfinite(one).all()
    # All that is not masked is another; then all that is masked.
    other = captions(kind, seed=1)["text"]
    mask = cond["text_mask"].reshape(3, LENGTH, *(1,) * (other.ndim - 2))
    seen = {**cond, "text": jnp.where(mask, other, cond["text"])}
    unseen = {**cond, "text": jnp.where(mask, cond["text"], other)}
    changed = np.abs(predict(kind, name, (z_t, t, seen)) - one).max((1, 2, 3))
    assert (changed[:2] > 1e-5).all()
    assert changed[2] == 0
    np.testing.assert_array_equal(predict(kind, name, (z_t, t, unseen)), one)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_no_caption_are_finite(kind: Any) -> None:
    z_t, t, cond = example(kind)
    cond["text_mask"] = jnp.zeros_like(cond["text_mask"])
    params, _ = applied(kind, "unet")
    net: Any = network(text=kind, name="unet")

    def loss(params: Any) -> jax.Array:
        return jnp.sum(jnp.square(net.apply({"params": params}, z_t, t, cond)))

    gradients = jax.jit(jax.grad(loss), compiler_options=FAST)(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients["text"]["first"]).max() > 0


def test_the_order_of_bytes_matters() -> None:
    z_t, t, cond = example("bytes")
    other = {**cond, "text": cond["text"][:, ::-1]}
    changed = predict("bytes", "uvit", (z_t, t, other)) - predict(
        "bytes", "uvit", (z_t, t, cond)
    )
    assert np.abs(changed[0]).max() > 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close_to_float32(name: str) -> None:
    want = predict("bytes", name, example("bytes"))
    got = predict("bytes", name, example("bytes"), dtype="bfloat16")
    assert 0 < np.abs(got - want).max() / want.std() < 0.15


def test_cross_attention_is_a_masked_softmax() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 8)).astype(np.float32)
    text = rng.normal(size=(2, 5, 6)).astype(np.float32)
    mask = np.array([[True, False, True, True, False], [False] * 5])
    layer = CrossAttention(head_dim=4, dtype=jnp.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x, text, mask)["params"]
    p = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    got = np.asarray(layer.apply({"params": p}, x, text, mask))

    def rms(a: np.ndarray) -> np.ndarray:
        return a / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-6)

    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    h = (x - mean) / np.sqrt(var + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]
    q = (h @ p["q"]["kernel"] + p["q"]["bias"]).reshape(2, 3, 2, 4)
    kv = np.einsum("bli,inc->blnc", text, p["kv"]["kernel"]) + p["kv"]["bias"]
    k, v = (kv[:, :, i].reshape(2, 5, 2, 4) for i in range(2))
    q, k = rms(q) * p["qk_norm"][0], rms(k) * p["qk_norm"][1]
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / 2
    weights = np.exp(scores) * mask[:, None, None]
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    out = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 3, 8)
    want = out @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_missing_captions_are_said() -> None:
    net = network(text="bytes")
    with pytest.raises(ValueError, match='cond has no "text"'):
        jax.eval_shape(net.init, jax.random.key(0), *inputs())


def test_networks_without_captions_are_as_they_were() -> None:
    params = random_params(network())
    assert "text" not in params
    assert set(params["condition"]) == {"time_in", "time_out", "label"}


@pytest.mark.parametrize("name", ["unet", "mlp"])
def test_a_told_scale_changes_nothing_at_first_and_then_something(name: str) -> None:
    mlp: dict[str, Any] = {}
    if name == "mlp":
        mlp = {"channels": (8,), "blocks": (1,), "attention_resolutions": ()}
    z_t, t, cond = inputs()
    told = (z_t, t, {**cond, "guidance": jnp.array([0.0, 0.5, 3.0])})
    net = network(name=name, is_guided=True, **mlp)
    params = random_params(net, example=told)
    apply = jax.jit(net.apply, compiler_options=FAST)
    plain = jax.tree.map(lambda leaf: leaf, params)
    last = params["condition"]["guidance"]
    plain["condition"]["guidance"] = jax.tree.map(jnp.zeros_like, last)
    without = jax.jit(network(name=name, **mlp).apply, compiler_options=FAST)
    unguided: Any = without({"params": params}, *inputs())
    got = apply({"params": plain}, *told)
    np.testing.assert_allclose(got, unguided, rtol=1e-4, atol=1e-5)
    params["condition"]["guidance"] = last
    changed = np.abs(apply({"params": params}, *told) - unguided).max((1, 2, 3))
    assert (changed > 1e-5).all()
