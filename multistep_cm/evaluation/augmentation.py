"""Small random warps of images, for training the classifier."""

import numpy as np


def warp(
    images: np.ndarray,
    rng: np.random.Generator,
    *,
    shift: float,
    rotation: float,
    scaling: float,
    shear: float,
) -> np.ndarray:
    """Warps each image by an affine map of its own; bilinear; edges repeat.

    Args:
      images: [count, height, width, channels], any real dtype.
      rng: what the maps are drawn from, uniformly.
      shift: largest shift along each axis, as a share of that side.
      rotation: largest rotation, in radians.
      scaling: largest change of size, as a share.
      shear: largest horizontal shear, in pixels a pixel.

    Returns:
      float32 of the same shape.
    """
    count, height, width, _ = images.shape
    angle = rng.uniform(-rotation, rotation, (count, 1, 1))
    size = 1.0 + rng.uniform(-scaling, scaling, (count, 1, 1))
    slant = rng.uniform(-shear, shear, (count, 1, 1))
    down = height * rng.uniform(-shift, shift, (count, 1, 1)) + (height - 1) / 2
    right = width * rng.uniform(-shift, shift, (count, 1, 1)) + (width - 1) / 2
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    y = np.arange(height)[:, None] - (height - 1) / 2
    x = np.arange(width)[None, :] - (width - 1) / 2
    source_y = np.clip(cos * y - sin * x + down, 0, height - 1)
    source_x = np.clip(sin * y + cos * x + slant * y + right, 0, width - 1)
    top, left = source_y.astype(np.int64), source_x.astype(np.int64)
    bottom = np.minimum(top + 1, height - 1)
    beside = np.minimum(left + 1, width - 1)
    by, bx = (source_y - top)[..., None], (source_x - left)[..., None]
    each = np.arange(count)[:, None, None]
    upper = (1 - bx) * images[each, top, left] + bx * images[each, top, beside]
    lower = (1 - bx) * images[each, bottom, left] + bx * images[each, bottom, beside]
    return ((1 - by) * upper + by * lower).astype(np.float32)
