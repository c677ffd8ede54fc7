"""Inception-v3 as the Fréchet Inception Distance wants it: the graph of 2015-12-05.

It differs from the Inception-v3 of other libraries: average pools leave the padding
out of their means, the last block pools by maximum, there are 1008 classes, and images
are enlarged by `resize`. Channels are last, batch normalisation is folded into the
convolutions, everything is float32. Layers have the names that they have in the
weight files: `inception_weights.py` reads those.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SIDE = 299
NUM_FEATURES = 2048
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7
NUM_SPATIAL = 17 * 17 * SPATIAL_CHANNELS

Size = int | tuple[int, int]
Layer = tuple[str, int, Size]
"""Name, features, side of the kernel."""


def taps(params: Any, images: jax.Array) -> dict[str, jax.Array]:
    """Features of images as they are stored.

    Args:
      params: of `Inception`, from `inception_weights.load_weights`.
      images: uint8 [batch, height, width, 3] or, in grey, [batch, height, width, 1].

    Returns:
      those of `Inception`, float32.
    """
    grey = images.shape[-1] == 1
    colour = jnp.repeat(images, 3, axis=-1) if grey else images
    pixels = resize(colour.astype(jnp.float32), SIDE)
    outputs: Any = Inception().apply({"params": params}, (pixels - 128.0) / 128.0)
    return dict(outputs)


def resize(images: jax.Array, side: int) -> jax.Array:
    """Bilinear, as TensorFlow 1 does it: no antialiasing, no half-pixel offset.

    Output row i lies at i * height / side of the input, in float32; the last row is
    repeated beyond itself. Columns first, then rows.

    Args:
      images: float32 [batch, height, width, channels].
      side: of the output.

    Returns:
      float32 [batch, side, side, channels].
    """
    upper, lower, down = _positions(images.shape[1], side)
    left, right, across = _positions(images.shape[2], side)
    start, end = images[:, :, left], images[:, :, right]
    rows = start + (end - start) * across[:, None]
    start, end = rows[:, upper], rows[:, lower]
    return start + (end - start) * down[:, None, None]


def _positions(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each output the inputs before and after it, and how far between it lies."""
    places = np.arange(new, dtype=np.float32) * (np.float32(old) / np.float32(new))
    before = places.astype(np.int32)
    between = (places - before).astype(np.float32)
    return before, np.minimum(before + 1, old - 1), between


class Inception(nn.Module):
    """The network, from pixels in -1..1, [batch, 299, 299, 3], to a dict of float32:

    64, 192, 768: [batch, so many], means over the image after the first and second
    pool and after Mixed_6e; 2048: [batch, 2048], the mean after the last block (pool_3
    of the graph), the features of FID; spatial: [batch, 17 * 17 * 7], the first seven
    channels of Mixed_6d (mixed_6/conv of the graph), the features of sFID;
    logits_unbiased: [batch, 1008], without the bias, for the Inception Score.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        found = {}
        x = _conv(x, ("Conv2d_1a_3x3", 32, 3), strides=2, padding="VALID")
        x = _conv(x, ("Conv2d_2a_3x3", 32, 3), padding="VALID")
        x = _conv(x, ("Conv2d_2b_3x3", 64, 3))
        x = _reduce(x)
        found["64"] = x.mean((1, 2))
        x = _conv(x, ("Conv2d_3b_1x1", 80, 1))
        x = _conv(x, ("Conv2d_4a_3x3", 192, 3), padding="VALID")
        x = _reduce(x)
        found["192"] = x.mean((1, 2))
        x = BlockA(32, name="Mixed_5b")(x)
        x = BlockA(64, name="Mixed_5c")(x)
        x = BlockA(64, name="Mixed_5d")(x)
        x = BlockB(name="Mixed_6a")(x)
        x = BlockC(128, name="Mixed_6b")(x)
        x = BlockC(160, name="Mixed_6c")(x)
        x = BlockC(160, name="Mixed_6d")(x)
        found["spatial"] = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
        x = BlockC(192, name="Mixed_6e")(x)
        found["768"] = x.mean((1, 2))
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(maximum=False, name="Mixed_7b")(x)
        x = BlockE(maximum=True, name="Mixed_7c")(x)
        found["2048"] = x = x.mean((1, 2))
        dense = nn.Dense(NUM_CLASSES, use_bias=False, precision="highest", name="fc")
        found["logits_unbiased"] = dense(x)
        return found


def _conv(
    x: jax.Array, layer: Layer, strides: int = 1, padding: str = "SAME"
) -> jax.Array:
    name, features, size = layer
    kernel = (size, size) if isinstance(size, int) else size
    # Full precision on every accelerator: these numbers are compared with others'.
    conv = nn.Conv(
        features, kernel, strides, padding=padding, precision="highest", name=name
    )
    return nn.relu(conv(x))


def _chain(x: jax.Array, *layers: Layer) -> jax.Array:
    return functools.reduce(_conv, layers, x)


def _join(branches: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


def _reduce(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2))


def _average(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


class BlockA(nn.Module):
    """35x35."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        twice = (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3))
        return _join(
            [
                _chain(x, ("branch1x1", 64, 1)),
                _chain(x, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
                _chain(x, *twice, ("branch3x3dbl_3", 96, 3)),
                _chain(_average(x), ("branch_pool", self.pool_features, 1)),
            ]
        )


class BlockB(nn.Module):
    """35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        halve = functools.partial(_conv, strides=2, padding="VALID")
        inner = _chain(x, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3))
        return _join(
            [
                halve(x, ("branch3x3", 384, 3)),
                halve(inner, ("branch3x3dbl_3", 96, 3)),
                _reduce(x),
            ]
        )


class BlockC(nn.Module):
    """17x17, with 7x7 kernels in two parts."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner = self.features
        once: tuple[Layer, ...] = (
            ("branch7x7_1", inner, 1),
            ("branch7x7_2", inner, (1, 7)),
            ("branch7x7_3", 192, (7, 1)),
        )
        twice: tuple[Layer, ...] = (
            ("branch7x7dbl_1", inner, 1),
            ("branch7x7dbl_2", inner, (7, 1)),
            ("branch7x7dbl_3", inner, (1, 7)),
            ("branch7x7dbl_4", inner, (7, 1)),
            ("branch7x7dbl_5", 192, (1, 7)),
        )
        return _join(
            [
                _chain(x, ("branch1x1", 192, 1)),
                _chain(x, *once),
                _chain(x, *twice),
                _chain(_average(x), ("branch_pool", 192, 1)),
            ]
        )


class BlockD(nn.Module):
    """17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        halve = functools.partial(_conv, strides=2, padding="VALID")
        crossed: tuple[Layer, ...] = (
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
        )
        return _join(
            [
                halve(_chain(x, ("branch3x3_1", 192, 1)), ("branch3x3_2", 320, 3)),
                halve(_chain(x, *crossed), ("branch7x7x3_4", 192, 3)),
                _reduce(x),
            ]
        )


class BlockE(nn.Module):
    """8x8, in which two branches fork."""

    maximum: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        once = _chain(x, ("branch3x3_1", 384, 1))
        twice = _chain(x, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
        highest = functools.partial(nn.max_pool, window_shape=(3, 3), padding="SAME")
        pooled = highest(x) if self.maximum else _average(x)
        return _join(
            [
                _chain(x, ("branch1x1", 320, 1)),
                _chain(once, ("branch3x3_2a", 384, (1, 3))),
                _chain(once, ("branch3x3_2b", 384, (3, 1))),
                _chain(twice, ("branch3x3dbl_3a", 384, (1, 3))),
                _chain(twice, ("branch3x3dbl_3b", 384, (3, 1))),
                _chain(pooled, ("branch_pool", 192, 1)),
            ]
        )
