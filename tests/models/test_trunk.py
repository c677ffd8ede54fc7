"""Both networks as a whole."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.models.trunk import Trunk
from tests.models.networks import CLASSES, inputs, network, random_params

NAMES = ("unet", "uvit")


@cache
def initialised(name: str) -> Any:
    net = network(name=name)
    return jax.jit(net.init)(jax.random.key(0), *inputs())["params"]


def predict(net: Trunk, params: Any, seed: int = 0, **changes: Any) -> np.ndarray:
    z_t, t, cond = inputs(seed=seed)
    cond = {"label": changes.get("label", cond["label"])}
    return np.asarray(jax.jit(net.apply)({"params": params}, z_t, t, cond))


def stack_blocks(tree: Any) -> Any:
    """Unrolled parameters in the layout of scanned ones."""
    if not isinstance(tree, dict):
        return tree
    blocks = sorted(key for key in tree if key.startswith("block_"))
    if blocks:
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *(tree[key] for key in blocks))
        return {"blocks": stacked}
    return {key: stack_blocks(value) for key, value in tree.items()}


@pytest.mark.parametrize("name", NAMES)
def test_output_starts_at_zero_in_float32_with_float32_parameters(name: str) -> None:
    z_t = inputs()[0]
    out = predict(network(name=name), initialised(name))
    assert out.shape == z_t.shape
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, 0)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(initialised(name))}
    assert dtypes == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_every_zero_matrix_is_a_last_one(name: str) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(initialised(name))
    paths = {tuple(key.key for key in path): leaf for path, leaf in leaves}
    for path, leaf in paths.items():
        if path[-1] == "kernel":
            assert (path[-2] in ("out", "down")) == (not np.any(leaf)), path


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close_to_float32(name: str) -> None:
    net, low = network(name=name), network(name=name, dtype="bfloat16")
    params = random_params(net)
    want, got = predict(net, params), predict(low, params)
    assert got.dtype == jnp.float32
    error = np.abs(got - want).max() / want.std()
    assert 0 < error < 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_ends_of_time_are_finite_and_differ(name: str, dtype: str) -> None:
    net = network(name=name, dtype=dtype)
    params = random_params(net)
    z_t, t, cond = inputs()
    assert float(t[0]) == 0 and float(t[-1]) == 1
    apply = jax.jit(net.apply)
    forward = apply({"params": params}, z_t, t, cond)
    backward = apply({"params": params}, z_t, t[::-1], cond)
    assert np.isfinite(forward).all() and np.isfinite(backward).all()
    assert np.abs(forward[0] - backward[0]).max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_each_class_and_no_class_give_another_output(name: str) -> None:
    net = network(name=name)
    params = random_params(net)
    outputs = [predict(net, params, label=jnp.full(3, k)) for k in range(CLASSES + 1)]
    for k in range(CLASSES + 1):
        for other in range(k):
            assert np.abs(outputs[k] - outputs[other]).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_do_not_mix(name: str) -> None:
    net = network(name=name)
    params = random_params(net)
    z_t, t, cond = inputs()
    apply = jax.jit(net.apply)
    whole = apply({"params": params}, z_t, t, cond)
    alone = apply({"params": params}, z_t[1:2], t[1:2], {"label": cond["label"][1:2]})
    np.testing.assert_allclose(alone[0], whole[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_at_its_resolutions_only(name: str) -> None:
    example = inputs()

    def run(resolutions: tuple[int, ...], train: bool, seed: int = 0) -> np.ndarray:
        net = network(name=name, dropout=0.5, dropout_resolutions=resolutions)
        rngs = {"dropout": jax.random.key(seed)}
        apply = jax.jit(lambda p: net.apply(p, *example, train=train, rngs=rngs))
        return np.asarray(apply({"params": random_params(net)}))

    plain = run((), train=False)
    np.testing.assert_array_equal(run((16,), train=True), plain)
    trained = run((4,), train=True)
    assert np.abs(trained - plain).max() > 1e-3
    np.testing.assert_array_equal(run((4,), train=True), trained)
    assert np.abs(run((4,), train=True, seed=1) - trained).max() > 1e-3
    assert np.abs(run((), train=True) - trained).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_scanned_blocks_equal_unrolled_blocks(name: str) -> None:
    unrolled = network(name=name, scan_blocks=False)
    params = random_params(unrolled)
    want = predict(unrolled, params)
    got = predict(network(name=name), stack_blocks(params))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_remat_does_not_change_gradients(name: str, scan: bool) -> None:
    example = inputs()
    params = random_params(network(name=name, scan_blocks=scan))

    def gradient(remat: str) -> Any:
        net = network(name=name, remat=remat, scan_blocks=scan, dropout=0.1)

        def loss(params: Any) -> jax.Array:
            rngs = {"dropout": jax.random.key(3)}
            out = net.apply({"params": params}, *example, train=True, rngs=rngs)
            return jnp.mean(out**2)  # type: ignore[operator]

        return jax.jit(jax.grad(loss))(params)

    want = gradient("none")
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want)) > 0
    for remat in ("full", "dots"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            gradient(remat),
            want,
        )


def test_upward_blocks_take_the_skips_in_mirrored_order() -> None:
    """Only the last block down and the last block up change x: a skip joins them."""
    net = network(name="uvit", attention_resolutions=(8, 4), scan_blocks=False)
    params = random_params(net)
    x = predict(net, params)
    for j in (0, 1):
        changed = jax.tree.map(lambda p: p, params)
        changed["level_0_up"][f"block_{j}"] = params["level_0_up"][f"block_{1 - j}"]
        assert np.abs(predict(net, changed) - x).max() > 1e-3
