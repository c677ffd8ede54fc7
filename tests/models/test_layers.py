"""Layers against numpy in float64, written from the formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.models import layers, uvit
from tests.models.formulas import Arrays, draw, filled, group_norm, layer_norm, run

OPTIONS = layers.BlockOptions(
    channels=8, head_dim=4, mlp_ratio=2, dropout=0.0, dtype=jnp.float32, train=False
)


def swish(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def dense(p: Arrays, x: np.ndarray) -> np.ndarray:
    return np.tensordot(x, p["kernel"], axes=1) + p["bias"]


def film(p: Arrays, x: np.ndarray, condition: np.ndarray) -> np.ndarray:
    both = dense(p["both"], condition)[:, :, None, None]
    return x * (1 + both[:, 0]) + both[:, 1]


def conv3x3(p: Arrays, x: np.ndarray) -> np.ndarray:
    height, width = x.shape[1:3]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return p["bias"] + sum(
        x[:, i : i + height, j : j + width] @ p["kernel"][i, j]
        for i in range(3)
        for j in range(3)
    )


def attention(p: Arrays, x: np.ndarray, head_dim: int) -> np.ndarray:
    def normed(h: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * gain

    qkv = dense(p["qkv"], layer_norm(p["norm"], x))
    heads = (len(x), -1, x.shape[-1] // head_dim, head_dim)
    query, key, value = (qkv[..., i, :].reshape(heads) for i in range(3))
    query, key = normed(query, p["qk_norm"][0]), normed(key, p["qk_norm"][1])
    logits = np.einsum("bqhd,bkhd->bhqk", query, key)
    weights = np.exp(logits / np.sqrt(head_dim))
    weights /= weights.sum(-1, keepdims=True)
    h = np.einsum("bhqk,bkhd->bqhd", weights, value)
    return dense(p["out"], h.reshape(x.shape))


def test_sinusoids_are_sines_and_cosines_of_a_thousand_t() -> None:
    t = np.array([0.0, 0.25, 1.0])
    got = layers.sinusoidal_embedding(jnp.asarray(t, jnp.float32), 8)
    angles = 1000 * t[:, None] * 10.0 ** (-4 * np.arange(4) / 3)
    want = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    np.testing.assert_allclose(got, want, atol=2e-4)  # float32 angles up to 1000


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_sinusoids_are_float32_for_every_time_dtype(x64: None, dtype: Any) -> None:
    got = layers.sinusoidal_embedding(jnp.ones(2, dtype), 8)
    assert got.dtype == jnp.float32


def test_neighbouring_times_differ() -> None:
    t = jnp.array([0.5, 0.5 + 1 / 1280])
    first, second = layers.sinusoidal_embedding(t, layers.TIME_WIDTH)
    assert float(jnp.abs(first - second).max()) > 0.1


def test_class_adds_its_row_and_the_last_row_is_no_class() -> None:
    module = layers.ConditionEmbedding(width=6, num_classes=3)
    t, label = jnp.array([0.3, 0.3]), jnp.array([1, 3])
    params = filled(module, t, {"label": label})
    table = params["label"]["embedding"]
    assert table.shape == (4, 6)
    got = run(module, params, t, {"label": label})
    np.testing.assert_allclose(got[1] - got[0], table[3] - table[1], atol=1e-5)


def test_no_classes_need_no_label_and_classes_do() -> None:
    t = jnp.zeros(2)
    free = layers.ConditionEmbedding(width=6, num_classes=0)
    assert set(filled(free, t, {})) == {"time_in", "time_out"}
    with pytest.raises(ValueError, match='3 classes, but cond has no "label"'):
        filled(layers.ConditionEmbedding(width=6, num_classes=3), t, {})


def test_attention_is_the_formula() -> None:
    x = draw(2, 2, 3, 8)
    module = layers.SelfAttention(head_dim=4, dtype=jnp.float32)
    params = filled(module, x)
    want = attention(params, x, head_dim=4)
    np.testing.assert_allclose(run(module, params, x), want, atol=1e-5)


def test_attention_stays_finite_for_huge_activations() -> None:
    x = 1e4 * draw(1, 2, 2, 8)
    module = layers.SelfAttention(head_dim=4, dtype=jnp.bfloat16)
    params = jax.tree.map(lambda p: 100 * p, filled(module, x))
    assert np.isfinite(run(module, params, x).astype(np.float32)).all()


def test_transformer_block_is_the_formula() -> None:
    x, skip, condition = draw(2, 2, 3, 8), draw(2, 2, 3, 8), draw(2, 5)
    module = uvit.TransformerBlock(OPTIONS)
    p = filled(module, x, layers.Condition(jnp.asarray(condition)), skip)
    h = x + skip
    hidden = swish(dense(p["mlp"]["up"], layer_norm(p["mlp"]["norm"], h)))
    assert hidden.shape[-1] == 16
    h = h + dense(p["mlp"]["down"], film(p["mlp"]["film"], hidden, condition))
    want = h + attention(p["attention"], h, OPTIONS.head_dim)
    got = run(module, p, x, layers.Condition(jnp.asarray(condition)), skip)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("has_skip", [False, True])
def test_resnet_block_is_the_formula(has_skip: bool) -> None:
    x, condition = draw(2, 4, 4, 8), draw(2, 5)
    skip = draw(2, 4, 4, 8) if has_skip else None
    module = layers.ResNetBlock(OPTIONS)
    p = filled(module, x, layers.Condition(jnp.asarray(condition)), skip)
    h = group_norm(p["norm_in"], x, groups=2)
    if skip is not None:
        h = (h + group_norm(p["norm_skip"], skip, groups=2)) / np.sqrt(2)
    h = group_norm(p["norm_out"], conv3x3(p["conv_in"], swish(h)), groups=2)
    want = x + conv3x3(p["out"], swish(film(p["film"], h, condition)))
    got = run(module, p, x, layers.Condition(jnp.asarray(condition)), skip)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_products_of_few_rows_at_once_are_those_one_by_one() -> None:
    """The form for TPUs of a `StackedDense` of vectors."""
    x, kernel, bias = (jnp.asarray(draw(*s)) for s in ((3, 5), (5, 2, 7), (2, 7)))
    module = layers.StackedDense(2, 7, jnp.float32)
    params = {"kernel": kernel, "bias": bias}
    want = run(module, params, x)
    np.testing.assert_allclose(layers.at_once(x, kernel, bias), want, rtol=1e-5)
    np.testing.assert_allclose(want[1], x @ kernel[:, 1] + bias[1], rtol=1e-5)
