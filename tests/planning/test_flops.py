"""Our count of FLOPs against closed forms and against the compiler's."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from multistep_cm import factory
from multistep_cm.models.layers import CrossAttention
from multistep_cm.planning.flops import count_flops
from multistep_cm.planning.making import step_flops, with_teacher
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from multistep_cm.training.compilation import abstract_frozen
from tests.training.tiny import tiny_config

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
W = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 4 * 8 * 8


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


def scanned(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda c, _: (c @ w, None), x, length=5)[0]


def branched(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)


def unused(x: jax.Array, w: jax.Array) -> jax.Array:
    x @ w
    return x


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (product, 1),
        (jax.jit(product), 1),
        (scanned, 5),
        (branched, 2),
        (unused, 0),
        (lambda x, w: jax.vmap(product, (None, 0))(x, jnp.stack([w] * 3)), 3),
        # d/dx and d/dw; the value itself is not asked for.
        (jax.grad(lambda x, w: product(x, w).sum(), (0, 1)), 2),
        (jax.value_and_grad(lambda x, w: product(x, w).sum(), (0, 1)), 3),
        # Forward, once more, and two backward for each of the two layers; of the last
        # product of the block nothing but its result is needed: it is not repeated.
        (
            jax.value_and_grad(
                lambda x, w: jax.checkpoint(
                    lambda x, w: jnp.sin(jnp.sin(x @ w) @ w), prevent_cse=False
                )(x, w).sum(),
                (0, 1),
            ),
            8,
        ),
    ],
)
def test_products(function: Any, products: int) -> None:
    assert count_flops(function, X, W) == products * PRODUCT


def test_a_convolution_and_its_gradients() -> None:
    """3x3, 8 to 16 features on 5 x 5 pixels; each gradient costs as much."""
    from multistep_cm.models.convolution import convolve

    x = jax.ShapeDtypeStruct((2, 5, 5, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 8, 16), jnp.float32)
    one = 2 * (2 * 5 * 5) * 9 * 8 * 16
    assert count_flops(convolve, x, kernel) == one
    loss = lambda x, kernel: jnp.square(convolve(x, kernel)).sum()  # noqa: E731
    assert count_flops(jax.grad(loss, (0, 1)), x, kernel) == 3 * one


def test_groups_and_strides() -> None:
    x = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((2, 2, 2, 6), jnp.float32)

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", None, None, layout, feature_group_count=2
        )

    one = 2 * (4 * 4 * 6) * 4 * 2
    assert count_flops(convolve, x, kernel) == one
    loss = lambda x: convolve(x, jnp.ones(kernel.shape)).sum()  # noqa: E731
    # The gradient is a convolution of an image spread with zeros.
    assert count_flops(jax.grad(loss), x) == pytest.approx(one, rel=0.3)


def test_of_forms_for_platforms_that_for_any_counts() -> None:
    """A form for TPUs that multiplies twice to be fast is no more of a model's work."""

    def once(x: jax.Array) -> jax.Array:
        return x @ x

    def twice(x: jax.Array) -> jax.Array:
        return x @ x + x.T @ x

    def forms(x: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(x, tpu=twice, default=once)

    def either(x: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] > 0, once, twice, x)

    x = jnp.ones((8, 8))
    product = 2 * 8**3
    assert count_flops(forms, x) == product
    assert count_flops(jax.grad(lambda x: forms(x).sum()), x) == 2 * product
    assert count_flops(either, x) == 2 * product


def test_a_shard_map_counts_for_all_devices() -> None:
    mesh = make_mesh({"data": 4, "fsdp": 1, "tensor": 1}, jax.devices()[:4])
    rows = PartitionSpec("data")
    cut = jax.shard_map(
        product, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows
    )
    assert count_flops(cut, X, W) == PRODUCT


UVIT = {
    "model__name": "uvit",
    "model__channels": (16, 32),
    "model__blocks": (2, 3),
    "model__attention_resolutions": (16,),
    "model__head_dim": 16,
    "model__condition_width": 64,
    "data__image_size": 32,
    "data__channels": 3,
    "training__batch_size": 8,
}


def uvit_forward_flops() -> int:
    """Of one image by hand: convolutions at 32 x 32, transformer blocks at 16 x 16."""
    outer, inner, wide = 32 * 32, 16 * 16, 64
    c, d = 16, 32
    resnet = outer * 2 * 9 * c * c * 2 + 2 * wide * 2 * c  # two convolutions, FiLM
    mlp = inner * 2 * (d * 4 * d) * 2 + 2 * wide * 2 * 4 * d
    attention = inner * 2 * (3 * d * d + d * d) + 2 * 2 * inner * inner * d
    ends = outer * 2 * 9 * 3 * c * 2
    joints = inner * 2 * c * d * 2
    time = 2 * (128 * wide + wide * wide)
    return 4 * resnet + 3 * (mlp + attention) + ends + joints + time


def test_a_network_is_what_its_layers_are() -> None:
    config = tiny_config(None, **UVIT)
    network = factory.make_network(config)
    params = factory.abstract_params(network, config)
    inputs = factory.example_inputs(config)
    count = count_flops(lambda p: network.apply({"params": p}, *inputs), params)
    assert count == uvit_forward_flops()


@functools.cache
def flops_of_step(**values: Any) -> float:
    """What a step on one device costs; traced once for each config."""
    config = with_teacher(tiny_config(None, **{**UVIT, **values}))
    return step_flops(config, make_mesh(config.mesh, jax.devices()[:1]))


@pytest.mark.parametrize(
    ("method", "forwards"), [("denoising", 3), ("ct", 4), ("cd", 5)]
)
def test_a_step_is_so_many_forward_passes(method: str, forwards: int) -> None:
    """Student forward and backward (3), target (1), teacher (1), for each image."""
    values = {} if method == "denoising" else {"method": method}
    count = flops_of_step(**values)
    assert count == pytest.approx(8 * forwards * uvit_forward_flops(), rel=0.02)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_and_calls_change_no_count(parts: int) -> None:
    whole = flops_of_step()
    accumulated = flops_of_step(training__accumulation=parts)
    assert accumulated == pytest.approx(whole, rel=1e-3)
    assert flops_of_step(training__steps_per_call=2) == whole


def test_recomputing_costs_most_of_a_forward_pass() -> None:
    assert tiny_config().model.remat == "none"
    extra = flops_of_step(model__remat="full") - flops_of_step()
    assert 0.5 * 8 * uvit_forward_flops() < extra < 8 * uvit_forward_flops()


@pytest.mark.usefixtures("users_hlo")
@pytest.mark.parametrize("method", ["denoising", "cd"])
def test_the_compiler_counts_nearly_the_same(method: str) -> None:
    """Where it counts all: no loop. It counts other arithmetic too, and no padding.

    Few channels at the images' size: from 32 on, CPUs convolve with fewer products.
    """
    values: dict[str, Any] = {
        **UVIT,
        "model__scan_blocks": False,
        "model__channels": (28, 64),
        "model__blocks": (1, 1),
    }
    config = with_teacher(tiny_config(None, method=method, **values))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    compiled = setup.build_step(config, mesh, abstract_frozen(config, mesh))
    costs = compiled.cost_analysis()
    assert costs is not None
    assert step_flops(config, mesh) == pytest.approx(costs["flops"], rel=0.1)


def test_attention_to_captions_is_counted() -> None:
    batch, pixels, length, channels, width = 3, 16, 7, 8, 12
    x = jax.ShapeDtypeStruct((batch, pixels, channels), jnp.float32)
    text = jax.ShapeDtypeStruct((batch, length, width), jnp.float32)
    mask = jax.ShapeDtypeStruct((batch, length), jnp.bool_)
    layer = CrossAttention(head_dim=4, dtype=jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.key(0), x, text, mask)
    queries_and_output = 2 * pixels * channels * channels
    keys_and_values = length * width * 2 * channels
    scores_and_sums = 2 * pixels * length * channels
    products = queries_and_output + keys_and_values + scores_and_sums
    assert count_flops(layer.apply, params, x, text, mask) == 2 * batch * products
