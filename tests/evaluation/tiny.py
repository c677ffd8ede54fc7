"""A feature network that numpy can follow: three linear maps of the pixels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

POOL, SPATIAL, CLASSES = 6, 4, 5


def make_params(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """For images of `size` numbers."""
    rng = np.random.default_rng(seed)
    widths = {"2048": POOL, "spatial": SPATIAL, "logits_unbiased": CLASSES}
    return {
        name: rng.standard_normal((size, width)).astype(np.float32) / size**0.5
        for name, width in widths.items()
    }


def taps(params: Any, images: jax.Array) -> dict[str, jax.Array]:
    """As `inception.taps`, of any images."""
    pixels = images.reshape(len(images), -1).astype(jnp.float32) / 64.0
    return {
        name: jnp.matmul(pixels, matrix, precision="highest") + 3.0
        for name, matrix in params.items()
    }


def expected(params: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """The same in float64."""
    pixels = images.reshape(len(images), -1) / 64.0
    return {
        name: pixels @ matrix.astype(np.float64) + 3.0
        for name, matrix in params.items()
    }


def make_images(count: int, seed: int = 0, side: int = 4) -> np.ndarray:
    """uint8 [count, side, side, 3]; not all alike bright."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 200, (count, side, side, 3))
    return (images + rng.integers(0, 56, (count, 1, 1, 1))).astype(np.uint8)
