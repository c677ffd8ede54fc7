"""The convolution against numpy and against JAX's own derivatives."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.models.convolution import Conv3x3, convolve
from tests.models.networks import FAST

RNG = np.random.default_rng(0)


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X, KERNEL, Y = draw(3, 5, 4, 2), draw(3, 3, 2, 6), draw(3, 5, 4, 6)


def numpy_convolve(x: jax.Array, kernel: jax.Array) -> np.ndarray:
    height, width = x.shape[1:3]
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = itertools.product(range(3), range(3))
    parts = (padded[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in taps)
    return np.asarray(sum(parts))


def test_value_is_the_sum_over_nine_taps() -> None:
    want = numpy_convolve(X, KERNEL)
    np.testing.assert_allclose(jax.jit(convolve)(X, KERNEL), want, atol=1e-5)


@pytest.mark.parametrize("mode", ["flat", "loop"])
def test_gradients_are_the_transposes(mode: str) -> None:
    """<y, conv(x, k)> is linear in x and in k; its gradients are known from that."""

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        if mode == "flat":
            return jnp.vdot(Y, convolve(x, kernel))

        def add(total: jax.Array, factor: jax.Array) -> tuple[jax.Array, None]:
            return total + jnp.vdot(Y, convolve(factor * x, kernel)), None

        return jax.lax.scan(add, jnp.zeros(()), jnp.array([0.25, 0.75]))[0]

    gradient = jax.jit(jax.grad(product, argnums=(0, 1)), compiler_options=FAST)
    to_x, to_kernel = gradient(X, KERNEL)
    other_x, other_kernel = draw(*X.shape), draw(*KERNEL.shape)
    want = np.vdot(np.asarray(Y), numpy_convolve(other_x, KERNEL))
    np.testing.assert_allclose(jnp.vdot(to_x, other_x), want, rtol=1e-4)
    want = np.vdot(np.asarray(Y), numpy_convolve(X, other_kernel))
    np.testing.assert_allclose(jnp.vdot(to_kernel, other_kernel), want, rtol=1e-4)


def test_forward_mode_is_the_product_rule() -> None:
    x_dot, kernel_dot = draw(*X.shape), draw(*KERNEL.shape)
    _, got = jax.jvp(convolve, (X, KERNEL), (x_dot, kernel_dot))
    want = numpy_convolve(x_dot, KERNEL) + numpy_convolve(X, kernel_dot)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_gradients_inside_a_loop_stay_in_order_on_cpus() -> None:
    """Permuted dimension numbers in a loop would run tens of times slower."""

    def loss(kernels: jax.Array) -> jax.Array:
        x = draw(2, 4, 4, 8)
        x, _ = jax.lax.scan(lambda x, k: (jnp.tanh(convolve(x, k)), None), x, kernels)
        return jnp.sum(x)

    kernels = jax.ShapeDtypeStruct((2, 3, 3, 8, 8), jnp.float32)
    program = str(jax.jit(jax.grad(loss)).lower(kernels).compile().as_text())
    labels = re.findall(r"dim_labels=(\w+->\w+)", program)
    assert len(labels) >= 3
    assert set(labels) == {"b01f_01io->b01f"}


@pytest.mark.parametrize("features", [2, 64])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_jaxs_own_gradients(platform: str, features: int) -> None:
    """Large ones too, which CPUs make of matrix products."""
    x, kernel = draw(3, 8, 4, features), draw(3, 3, features, 64)

    def gradient(convolution: object) -> str:
        def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.sum(convolution(x, kernel) ** 2)  # type: ignore[operator]

        traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(x, kernel)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
        return "\n".join(sorted(line.split("dim_numbers")[1] for line in lines))

    def own(x: jax.Array, kernel: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=layout
        )

    assert gradient(convolve) == gradient(own)


def test_layer_computes_in_its_dtype_and_can_start_at_zero() -> None:
    layer = Conv3x3(6, jnp.bfloat16)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), X)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}
    params = {"params": {"kernel": KERNEL, "bias": jnp.arange(6.0)}}
    out = jnp.asarray(layer.apply(params, X))
    assert out.dtype == jnp.bfloat16
    want = numpy_convolve(X, KERNEL) + np.arange(6.0)
    np.testing.assert_allclose(np.asarray(out, np.float32), want, atol=0.2)
    zero = Conv3x3(6, jnp.float32, zero_init=True)
    out, _ = zero.init_with_output(jax.random.key(0), X)
    np.testing.assert_array_equal(out, 0)
