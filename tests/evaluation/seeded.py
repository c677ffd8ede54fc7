"""Weights and images that numpy makes from nothing but names, the same everywhere.

Shared by the tests and by `make_inception_outputs.py`, which runs where torch is. Only
raw bits are drawn: numpy keeps their stream from version to version.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np

IMAGES = {"small": (8, 8), "middle": (32, 48), "large": (320, 310)}
"""Name to height and width; one image of each."""


def uniform(name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """float32 of this shape, between low and high."""
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
    share = (bits >> 40).astype(np.float32) * np.float32(2**-24)
    return (low + (high - low) * share).astype(np.float32).reshape(shape)


def leaf(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One array of the network, named as in the weight files; outputs stay near 1."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith(("bn.weight", "running_var")):
        return uniform(name, shape, 0.7, 1.4)
    if len(shape) == 1:
        return uniform(name, shape, -0.2, 0.2)
    bound = math.sqrt(6.0 / math.prod(shape[1:]))
    return uniform(name, shape, -bound, bound)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """All arrays of these names and shapes."""
    return {name: leaf(name, shape) for name, shape in shapes.items()}


def images() -> dict[str, np.ndarray]:
    """uint8 [1, height, width, 3] each: noise on a slope."""
    made = {}
    for name, (height, width) in IMAGES.items():
        noise = uniform(name, (1, height, width, 3), 0, 160)
        slope = np.linspace(0, 95, width, dtype=np.float32)[:, None]
        made[name] = (noise + slope).astype(np.uint8)
    return made
