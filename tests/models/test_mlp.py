"""The residual MLP: shapes, what it depends on, and its two layouts."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.models.build import count_parameters
from tests.models.networks import CLASSES, FAST, inputs, network, random_params

MLP: dict[str, Any] = {
    "name": "mlp",
    "channels": (16,),
    "blocks": (3,),
    "attention_resolutions": (),
}


def predict(params: Any, example: Any, **changes: Any) -> np.ndarray:
    net = network(**MLP, **changes)
    apply = jax.jit(net.apply, compiler_options=FAST)
    return np.asarray(apply({"params": params}, *example))


def test_starts_at_zero_in_the_shape_of_any_input() -> None:
    net = network(**MLP)
    label = {"label": jnp.zeros(5, jnp.int32)}
    for shape in ((5, 8, 8, 3), (5, 2), (5, 1)):
        example = (jnp.ones(shape), jnp.linspace(0, 1, 5), label)
        key = jax.random.key(0, impl="rbg")
        params = jax.jit(net.init, compiler_options=FAST)(key, *example)["params"]
        out = predict(params, example)
        assert out.shape == shape
        assert out.dtype == jnp.float32
        np.testing.assert_array_equal(out, 0)


def test_parameter_count() -> None:
    """Widen, three blocks (norm, up, FiLM, down), norm, out, and the embedding."""
    width, hidden, cond, size = 16, 32, 12, 8 * 8 * 3
    block = 2 * width + (width + 1) * hidden
    block += (cond + 1) * 2 * hidden + (hidden + 1) * width
    embedding = (128 + 1) * cond + (cond + 1) * cond + (CLASSES + 1) * cond
    ends = (size + 1) * width + 2 * width + (width + 1) * size
    params = random_params(network(**MLP))
    assert count_parameters(params) == 3 * block + embedding + ends


def test_depends_on_every_input_and_not_on_neighbours() -> None:
    params, (z_t, t, cond) = random_params(network(**MLP)), inputs(4)
    out = predict(params, (z_t, t, cond))
    label = {"label": (cond["label"] + 1) % CLASSES}
    for other in (
        (z_t.at[:, 7, 7, 2].add(1.0), t, cond),
        (z_t, 0.5 * t + 0.1, cond),
        (z_t, t, label),
    ):
        change = np.abs(predict(params, other) - out).reshape(4, -1)
        assert np.all(change.max(axis=1) > 1e-4)
    one = predict(params, jax.tree.map(lambda leaf: leaf[2:3], (z_t, t, cond)))
    np.testing.assert_allclose(one[0], out[2], rtol=1e-5, atol=1e-6)


def test_scanned_and_unrolled_are_one_function() -> None:
    params = random_params(network(**MLP))
    stacked = params["level_0"]["blocks"]
    blocks = {
        f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(3)
    }
    unrolled = params | {"level_0": blocks}
    out = predict(params, inputs())
    assert np.abs(out).max() > 0.1
    other = predict(unrolled, inputs(), scan_blocks=False)
    np.testing.assert_allclose(other, out, rtol=1e-5, atol=1e-5)
    remat = predict(params, inputs(), remat="full")
    np.testing.assert_allclose(remat, out, rtol=1e-5, atol=1e-5)


def test_dropout_needs_training_and_a_key() -> None:
    net, example = network(**MLP, dropout=0.5), inputs()
    params = {"params": random_params(net)}

    @partial(jax.jit, compiler_options=FAST)
    def run(seed: int) -> Any:
        rngs = {"dropout": jax.random.key(seed)}
        return net.apply(params, *example, train=True, rngs=rngs)

    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 1e-3
    # In evaluation it is not there, and asks for no key.
    still = predict(params["params"], example, dropout=0.5)
    np.testing.assert_array_equal(still, predict(params["params"], example))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compute_dtype(dtype: str) -> None:
    params = random_params(network(**MLP))
    out = predict(params, inputs(), dtype=dtype)
    assert out.dtype == np.float32
    exact = predict(params, inputs())
    error = np.abs(out - exact).max() / np.abs(exact).max()
    assert error == 0 if dtype == "float32" else 1e-5 < error < 0.05
