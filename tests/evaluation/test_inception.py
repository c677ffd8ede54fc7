"""The FID network against outputs of torch-fidelity's, and its resize by hand."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.evaluation import inception
from multistep_cm.evaluation.inception_weights import expected_shapes, to_params
from tests.evaluation import seeded

OUTPUTS = Path(__file__).parent / "data" / "inception_outputs.npz"
STRIDES = {"64": 1, "192": 3, "768": 7, "2048": 11, "logits_unbiased": 7, "spatial": 13}


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return to_params(seeded.weights(expected_shapes()))


@pytest.mark.slow
def test_agrees_with_torch_fidelity_at_every_layer(params: dict[str, Any]) -> None:
    compute = jax.jit(inception.Inception().apply)
    with np.load(OUTPUTS) as file:
        for name, image in seeded.images().items():
            pixels = inception.resize(jnp.asarray(image, jnp.float32), inception.SIDE)
            found: Any = compute({"params": params}, (pixels - 128) / 128)
            for layer, stride in STRIDES.items():
                values = np.asarray(found[layer]).reshape(-1)[::stride]
                expected = file[f"{name}/{layer}"]
                error = np.abs(values - expected).max() / np.abs(expected).max()
                print(name, layer, error)
                assert error < 3e-6, f"{name} {layer}: {error}"


def by_hand(image: np.ndarray, side: int) -> np.ndarray:
    """Bilinear from the formula, one number at a time, in float64."""
    height, width, channels = image.shape
    out = np.zeros((side, side, channels))
    for i in range(side):
        for j in range(side):
            y, x = i * height / side, j * width / side
            top, left = int(y + 1e-9), int(x + 1e-9)
            below, beside = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (1 - x + left) + image[top, beside] * (x - left)
            lower = image[below, left] * (1 - x + left)
            lower = lower + image[below, beside] * (x - left)
            out[i, j] = upper * (1 - y + top) + lower * (y - top)
    return out


@pytest.mark.parametrize("shape", [(4, 7), (30, 21), (13, 13), (1, 2)])
def test_resize_is_the_formula(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(0, 255, (*shape, 2)).astype(np.float32)
    found = inception.resize(jnp.asarray(image[None]), 13)[0]
    expected = by_hand(image.astype(np.float64), 13)
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-3)


def test_resize_has_no_half_pixel_offset_and_no_antialiasing() -> None:
    row = jnp.arange(4.0)[None, None, :, None]
    larger = inception.resize(row, 8)[0, 0, :, 0]
    np.testing.assert_array_equal(larger, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    smaller = inception.resize(row, 2)[0, 0, :, 0]
    np.testing.assert_array_equal(smaller, [0, 2])
    np.testing.assert_array_equal(inception.resize(row, 4)[0, 0, :, 0], [0, 1, 2, 3])


def test_what_goes_into_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grey becomes three channels, 0..255 becomes -1..1 around 128."""
    seen = []

    class Spy:
        def apply(self, variables: Any, pixels: jax.Array) -> dict[str, jax.Array]:
            seen.append(pixels)
            return {}

    monkeypatch.setattr(inception, "Inception", Spy)
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    inception.taps({}, jnp.asarray(grey))
    inception.taps({}, jnp.asarray(grey.repeat(3, axis=-1)))
    assert seen[0].shape == (1, 299, 299, 3)
    assert seen[0].dtype == jnp.float32
    np.testing.assert_array_equal(seen[0], seen[1])
    assert seen[0].min() == -1
    assert seen[0].max() == 127 / 128
