"""Products and sums in the forms for CPUs and TPUs: those of the formula."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.models import products
from multistep_cm.models.products import affine, product

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "sizes", [(3, 7), (7, 3), (5, 5)], ids=["wide", "high", "even"]
)
def test_a_product_and_its_gradients(sizes: tuple[int, int]) -> None:
    inputs, features = sizes
    x, kernel, y_bar = (
        RNG.normal(size=shape)
        for shape in ((2, 4, inputs), (inputs, features), (2, 4, features))
    )

    @jax.jit
    def run(x: jax.Array, kernel: jax.Array, y_bar: jax.Array) -> tuple[jax.Array, ...]:
        y, transpose = jax.vjp(product, x, kernel)
        return y, *transpose(y_bar)

    y, x_bar, kernel_bar = run(*map(jnp.float32, (x, kernel, y_bar)))
    wants = (x @ kernel, y_bar @ kernel.T, np.einsum("abi,abf->if", x, y_bar))
    for got, want in zip((y, x_bar, kernel_bar), wants, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_an_affine_map_and_its_gradients() -> None:
    x, kernel, bias, y_bar = (
        RNG.normal(size=shape) for shape in ((4, 3), (3, 5), (5,), (4, 5))
    )

    @jax.jit
    def run(y_bar: jax.Array, *arguments: jax.Array) -> tuple[jax.Array, ...]:
        y, transpose = jax.vjp(affine, *arguments)
        return y, *transpose(y_bar)

    got = run(*map(jnp.float32, (y_bar, x, kernel, bias)))
    want = (x @ kernel + bias, y_bar @ kernel.T, x.T @ y_bar, y_bar.sum(0))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_bias_is_a_sum_over_rows() -> None:
    x, y_bar = RNG.normal(size=(2, 3, 4, 5)), RNG.normal(size=(3, 4, 5))
    x, y_bar = jnp.float32(x[0]), jnp.float32(y_bar)
    y, transpose = jax.vjp(products.add_bias, x, jnp.arange(5.0))
    np.testing.assert_array_equal(y, x + np.arange(5))
    x_bar, bias_bar = transpose(y_bar)
    np.testing.assert_array_equal(x_bar, y_bar)
    np.testing.assert_allclose(bias_bar, np.sum(y_bar, (0, 1)), rtol=1e-5, atol=1e-6)


def test_rows_are_summed_by_a_product_as_well() -> None:
    """The form for TPUs; of bfloat16 the sum is float32 inside."""
    rows = jnp.ones((1000, 5), jnp.bfloat16).at[0].set(jnp.arange(5))
    got = products.sum_by_product(rows)
    assert got.dtype == jnp.bfloat16
    want = jnp.asarray(999 + np.arange(5), jnp.bfloat16)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_with_ones_are_exact_enough(dtype: Any) -> None:
    """In so many passes of bfloat16 as the precision asks TPUs for: squares of
    bfloat16 are held by two parts, float32 by three."""
    parts = {"HIGH": 2, "HIGHEST": 3}[products.exact(dtype).name]
    x = np.asarray(jnp.asarray(RNG.normal(size=64), dtype), np.float32)
    rest, held = x * x, np.zeros(64)
    for _ in range(parts):
        part = np.float32(jnp.asarray(rest, jnp.bfloat16))
        held, rest = held + part, rest - part
    np.testing.assert_allclose(held, np.float64(x) ** 2, rtol=2**-23)
