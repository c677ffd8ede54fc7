"""Images on the host: decoding, channels, resizing and flipping, in uint8."""

import io
from typing import Literal

import numpy as np
from PIL import Image

Resize = Literal["area", "bilinear", "bicubic"]

RESAMPLING = {
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
MODES = {1: "L", 3: "RGB"}


def decode(image: bytes | np.ndarray) -> Image.Image:
    """A PIL image from a PNG or JPEG file's bytes, or from a uint8 array.

    Arrays are [H, W], [H, W, 1] or [H, W, 3]. Raises ValueError for other arrays, and
    what PIL raises for bytes that are no image (OSError, SyntaxError and others).
    """
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image))
    if image.dtype != np.uint8:
        raise ValueError(f"the image has type {image.dtype}, expected uint8")
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[-1] == 3):
        raise ValueError(
            f"the image has shape {image.shape}, expected 1 or 3 channels at the end"
        )
    return Image.fromarray(image)


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Grayscale (1) or RGB (3), also from a palette, CMYK or transparency.

    Colours become gray by the luma of ITU-R 601-2: 0.299 R + 0.587 G + 0.114 B.
    """
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def resize_and_crop(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    """The shorter side to `size` pixels, then the central square; may upsample.

    `area` averages the pixels that each new one covers. An image that fits is returned
    as it is.
    """
    shorter = min(image.size)
    if resize == "area" and shorter % size == 0:
        # The same as resizing by BOX, but rounded once and not in each direction.
        image = image.reduce(shorter // size)
    elif shorter != size:
        width, height = (max(size, round(n * size / shorter)) for n in image.size)
        image = image.resize((width, height), RESAMPLING[resize])
    left, top = ((n - size) // 2 for n in image.size)
    if image.size != (size, size):
        image = image.crop((left, top, left + size, top + size))
    return image


def to_array(
    image: bytes | np.ndarray, size: int, channels: int, resize: Resize
) -> np.ndarray:
    """What a dataset holds as a uint8 array [size, size, channels]; see `decode`."""
    picture = to_channels(decode(image), channels)
    array = np.asarray(resize_and_crop(picture, size, resize))
    return array.reshape(size, size, channels)


def flip(images: np.ndarray, which: np.ndarray) -> np.ndarray:
    """A copy of images [N, H, W, C] in which those of `which`, bool [N], are mirrored.

    Left and right change places.
    """
    return np.where(which[:, None, None, None], images[:, :, ::-1], images)
