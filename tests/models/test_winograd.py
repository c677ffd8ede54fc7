"""Convolutions from matrix products, against sums over nine taps in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.models import winograd
from multistep_cm.models.convolution import convolve

RNG = np.random.default_rng(0)
SHAPES = [(2, 8, 12, 32, 40), (3, 4, 4, 48, 32), (32, 16, 16, 32, 32)]


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def taps(x: np.ndarray) -> np.ndarray:
    """What each tap of a kernel meets: float64 [3, 3, batch, height, width, inputs]."""
    height, width = x.shape[1:3]
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    views = [
        padded[:, i : i + height, j : j + width]
        for i, j in itertools.product(range(3), range(3))
    ]
    return np.reshape(views, (3, 3, *x.shape))


def exact(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.einsum("ijbhwc,ijck->bhwk", taps(x), kernel)


def relative_error(got: object, want: np.ndarray) -> float:
    """Root mean square, against that of what is wanted."""
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))  # type: ignore[operator]


def test_the_transforms_make_a_correlation() -> None:
    """In one dimension: A^T [(G k) * (B^T x)] is k against x at four places."""
    x, kernel = RNG.normal(size=6), RNG.normal(size=3)
    a_t, g, b_t = (np.array(m) for m in (winograd.A_T, winograd.G, winograd.B_T))
    got = a_t @ ((g @ kernel) * (b_t @ x))
    np.testing.assert_allclose(got, np.correlate(x, kernel), atol=1e-12)


@pytest.mark.parametrize(("batch", "height", "width", "inputs", "outputs"), SHAPES)
def test_values_and_gradients_are_those_of_a_convolution(
    batch: int, height: int, width: int, inputs: int, outputs: int
) -> None:
    x, kernel = draw(batch, height, width, inputs), draw(3, 3, inputs, outputs)
    y = draw(batch, height, width, outputs)
    assert winograd.suits(x.shape, outputs, x.dtype)

    def product(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = convolve(x, kernel)
        return jnp.vdot(y, value), value

    gradient = jax.jit(jax.grad(product, argnums=(0, 1), has_aux=True))
    (to_x, to_kernel), value = gradient(x, kernel)
    assert relative_error(value, exact(x, kernel)) < 2e-6
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    assert relative_error(to_x, exact(y, flipped)) < 2e-6
    want = np.einsum("ijbhwc,bhwk->ijck", taps(x), y.astype(np.float64))
    assert relative_error(to_kernel, want) < 4e-6


def test_groups_of_images_make_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a loop, which is there on one device only: here groups of two."""
    monkeypatch.setattr(winograd, "group_size", lambda *_: 2)
    x, kernel, y = draw(6, 8, 8, 32), draw(3, 3, 32, 40), draw(6, 8, 8, 40)
    # Made anew: jax would remember a trace of the functions themselves.
    value = jax.jit(lambda *sides: winograd.convolve(*sides))(x, kernel)
    assert relative_error(value, exact(x, kernel)) < 2e-6
    to_kernel = jax.jit(lambda *sides: winograd.to_kernel(*sides))(x, y)
    want = np.einsum("ijbhwc,bhwk->ijck", taps(x), y.astype(np.float64))
    assert relative_error(to_kernel, want) < 4e-6


def test_rounding_is_about_that_of_a_direct_sum() -> None:
    """On signals of length one: the error of the usual points is twice as large."""
    x, kernel = draw(8, 16, 16, 64), draw(3, 3, 64, 64)
    want = exact(x, kernel)
    direct = jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(kernel),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    error = relative_error(jax.jit(winograd.convolve)(x, kernel), want)
    assert error < 4 * relative_error(direct, want)


@pytest.mark.parametrize(
    ("shape", "outputs", "dtype", "expected"),
    [
        ((1, 8, 8, 32), 32, np.float32, True),
        ((1, 6, 8, 32), 32, np.float32, False),
        ((1, 8, 6, 32), 32, np.float32, False),
        ((1, 8, 8, 3), 32, np.float32, False),
        ((1, 8, 8, 32), 3, np.float32, False),
        ((1, 8, 8, 32), 32, jnp.bfloat16, False),
    ],
)
def test_it_is_used_where_it_fits_and_pays(
    shape: tuple[int, ...], outputs: int, dtype: np.dtype, expected: bool
) -> None:
    assert winograd.suits(shape, outputs, np.dtype(dtype)) == expected


def test_as_many_images_at_once_as_fit_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """4 tiles an image; on several devices a loop over images would move them."""
    shape = (6, 8, 8, 32)
    assert winograd.group_size(shape, 1024, 0) == 6
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert winograd.group_size(shape, 1024, 0) == 6
    assert winograd.group_size(shape, 1024, 24 * 1024 - 5 * 4096) == 3
    assert winograd.group_size(shape, 64 * 1024, 0) == 1


def test_cpus_multiply_matrices_and_nothing_else() -> None:
    """36 products of [tiles, inputs] and [inputs, outputs]: a quarter of a direct sum's
    multiplications, in all three convolutions of a gradient."""
    x, kernel = draw(4, 16, 16, 64), draw(3, 3, 64, 64)

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(convolve(x, kernel)))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, kernel).compile()
    assert " convolution(" not in str(compiled.as_text())
    analysis = compiled.cost_analysis()
    assert analysis is not None
    direct = 3 * 2 * x.size * 9 * 64
    assert analysis["flops"] < direct / 2
