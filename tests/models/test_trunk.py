"""Both networks as a whole."""

import re
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.models.level import Level
from multistep_cm.planning.flops import count_flops
from tests.models.networks import CLASSES, FAST, Inputs, inputs, network, random_params

NAMES = ("unet", "uvit")


@cache
def applied(**changes: Any) -> Any:
    """The compiled network, made once for each config."""
    return jax.jit(network(**changes).apply, compiler_options=FAST)


@cache
def initialised(name: str) -> Any:
    init = jax.jit(network(name=name).init, compiler_options=FAST)
    return init(jax.random.key(0, impl="rbg"), *inputs())["params"]


def predict(params: Any, example: Inputs | None = None, **changes: Any) -> np.ndarray:
    example = inputs() if example is None else example
    return np.asarray(applied(**changes)({"params": params}, *example))


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
    out = predict(initialised(name), name=name)
    assert out.shape == inputs()[0].shape
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, 0)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(initialised(name))}
    assert dtypes == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_the_last_matrix_of_each_branch_and_no_other_starts_at_zero(name: str) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(initialised(name))
    paths = {tuple(key.key for key in path): leaf for path, leaf in leaves}
    for path, leaf in paths.items():
        if path[-1] == "kernel":
            assert (path[-2] in ("out", "down")) == (not np.any(leaf)), path


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close_to_float32(name: str) -> None:
    params = random_params(network(name=name))
    want, got = predict(params, name=name), predict(params, name=name, dtype="bfloat16")
    assert got.dtype == jnp.float32
    error = np.abs(got - want).max() / want.std()
    assert 0 < error < 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_ends_of_time_are_finite_and_differ(name: str, dtype: str) -> None:
    params = random_params(network(name=name))
    z_t, t, cond = inputs()
    assert float(t[0]) == 0 and float(t[-1]) == 1
    forward = predict(params, (z_t, t, cond), name=name, dtype=dtype)
    backward = predict(params, (z_t, t[::-1], cond), name=name, dtype=dtype)
    assert np.isfinite(forward).all() and np.isfinite(backward).all()
    assert np.abs(forward[0] - backward[0]).max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_each_class_and_no_class_give_another_output(name: str) -> None:
    params = random_params(network(name=name))
    z_t, t, _ = inputs()
    outputs = [
        predict(params, (z_t, t, {"label": jnp.full(3, k, jnp.int32)}), name=name)
        for k in range(CLASSES + 1)
    ]
    for k in range(CLASSES + 1):
        for other in range(k):
            assert np.abs(outputs[k] - outputs[other]).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_do_not_mix(name: str) -> None:
    params = random_params(network(name=name))
    z_t, t, cond = inputs()
    others = inputs(seed=1)[0].at[1].set(z_t[1])
    assert float(jnp.abs(others[0] - z_t[0]).max()) > 0
    want = predict(params, (z_t, t, cond), name=name)[1]
    got = predict(params, (others, t, cond), name=name)[1]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_at_its_resolutions_only(name: str) -> None:
    def training(resolutions: tuple[int, ...]) -> Any:
        net = network(name=name, dropout=0.5, dropout_resolutions=resolutions)

        def apply(params: Any, seed: int) -> Any:
            rngs = {"dropout": jax.random.key(seed)}
            return net.apply({"params": params}, *inputs(), train=True, rngs=rngs)

        return apply

    params = random_params(network(name=name))
    for sizes, want in [
        ((16,), ""),
        ((4,), "4"),
        ((8,), "8"),
        ((8, 4), "48"),
        ((), "48"),
    ]:
        program = str(jax.make_jaxpr(training(sizes))(params, 0))
        masks = re.findall(r":bool\[3,(\d),\1,\d+\]", program)
        assert "".join(sorted(set(masks))) == want, sizes
    somewhere = jax.jit(training((4,)), compiler_options=FAST)
    dropped = somewhere(params, 0)
    np.testing.assert_array_equal(somewhere(params, 0), dropped)
    assert np.abs(somewhere(params, 1) - dropped).max() > 1e-3
    # The same parameters and no rng: in evaluation dropout is not there.
    evaluated = predict(params, name=name, dropout=0.5)
    np.testing.assert_array_equal(evaluated, predict(params, name=name))


@pytest.mark.parametrize("name", NAMES)
def test_scanned_blocks_equal_unrolled_blocks(name: str) -> None:
    params = random_params(network(name=name, scan_blocks=False))
    want = predict(params, name=name, scan_blocks=False)
    got = predict(stack_blocks(params), name=name)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_scan_that_is_written_out_is_the_same_function(name: str) -> None:
    params = random_params(network(name=name))
    for sizes, loops in [((), 2), ((4,), 2), ((8,), 0)]:  # the middle is one block
        net = network(name=name, unrolled_resolutions=sizes)
        program = str(jax.make_jaxpr(net.apply)({"params": params}, *inputs()))
        lengths = re.findall(r"length=(\d+)", program)
        rounds = re.findall(r"unroll=(\d+)", program)
        assert sum(a != b for a, b in zip(lengths, rounds, strict=True)) == loops
    want = predict(params, name=name)
    got = predict(params, name=name, unrolled_resolutions=(8,))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scan", [True, False])
def test_blocks_going_up_mirror_those_going_down(scan: bool) -> None:
    """Block j going up takes skip j, the last block first."""
    x, condition = jnp.ones((2, 4, 4, 8)), jnp.ones((2, 5))
    skips = jnp.stack([2 * x, 3 * x, 4 * x])

    class Affine(nn.Module):
        @nn.compact
        def __call__(self, x: Any, condition: Any, skip: Any) -> Any:
            return 10 * x + skip

    level = Level(Affine, 3, "up", "none", scan)
    out, none = level.apply({}, x, condition, skips)
    assert none is None
    np.testing.assert_array_equal(out, 1000 + 400 + 30 + 2)


class Small(nn.Module):
    """Two matrices with dropout between; the norm is no matrix product."""

    @nn.compact
    def __call__(self, x: Any, condition: Any, skip: Any) -> Any:
        h = nn.Dense(6)(nn.RMSNorm()(x + condition) + skip)
        h = nn.Dropout(0.2, deterministic=False)(nn.swish(h))
        return x + nn.Dense(4)(h)


@pytest.mark.parametrize("scan", [True, False])
def test_remat_keeps_gradients_and_computes_again(scan: bool) -> None:
    rng = np.random.default_rng(0)
    x, condition, *skips = jnp.asarray(rng.normal(size=(4, 3, 4)), jnp.float32)
    taken = jnp.stack(skips) if scan else tuple(skips)
    rngs = {name: jax.random.key(0, impl="rbg") for name in ("params", "dropout")}

    def level(remat: str) -> Level:
        return Level(Small, 2, "up", remat, scan)

    def loss(remat: str, params: Any) -> jax.Array:
        out, _ = level(remat).apply(params, x, condition, taken, rngs=rngs)
        return jnp.mean(out**2)

    params = level("none").init(rngs, x, condition, taken)
    gradients, products = {}, {}
    for remat in ("none", "dots", "full"):
        gradient = jax.grad(partial(loss, remat))
        gradients[remat] = jax.jit(gradient, compiler_options=FAST)(params)
        products[remat] = str(jax.make_jaxpr(gradient)(params)).count("dot_general")
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            gradients[remat],
            gradients["none"],
        )
    assert min(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients["none"])) > 0
    assert products["none"] == products["dots"] < products["full"]


@pytest.mark.parametrize("name", NAMES)
def test_networks_take_every_remat_policy(name: str) -> None:
    params = random_params(network(name=name))

    def policies(remat: str) -> int:
        net = network(name=name, remat=remat)
        text = str(jax.make_jaxpr(net.apply)({"params": params}, *inputs()))
        # A block's activation has a checkpoint of its own, which has no policy.
        return text.count("policy=") - text.count("policy=None")

    assert policies("none") == 0
    assert policies("full") == 3  # down, middle, up
    assert policies("dots") == 3
    assert policies("partial") == 3


@pytest.mark.parametrize("name", NAMES)
def test_partial_remat_computes_less_again(name: str) -> None:
    """Gradients stay, with dropout; products are fewer than with `full`."""
    params = random_params(network(name=name))
    rngs = {"dropout": jax.random.key(0)}

    def gradient(remat: str) -> Any:
        net = network(name=name, remat=remat, dropout=0.5)

        def loss(params: Any) -> jax.Array:
            out: Any = net.apply({"params": params}, *inputs(), train=True, rngs=rngs)
            return jnp.mean(jnp.square(out - 1))

        return jax.grad(loss)

    flops = {r: count_flops(gradient(r), params) for r in ("none", "partial", "full")}
    assert flops["none"] < flops["partial"] < flops["full"]
    want, got = (
        jax.jit(gradient(remat), compiler_options=FAST)(params)
        for remat in ("none", "partial")
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want
    )
