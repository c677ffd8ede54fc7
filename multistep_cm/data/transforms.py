"""Images on the host: decoding, channels, resizing and flipping, in uint8."""

import io
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

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


def as_seen(contents: bytes) -> Image.Image:
    """A picture from an image file, as a viewer shows it, in 8 bits a channel.

    Turned as its EXIF orientation says; transparency over white; 16 bits scaled to 8;
    the first of several frames. Colour profiles are not applied. Raises ValueError for
    what is no image and for pixels in floating point or beyond 16 bits, and what PIL
    raises for a broken one.
    """
    try:
        image = decode(contents)
    except UnidentifiedImageError as error:
        raise ValueError("it is in no format that Pillow reads") from error
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("its pixels are in floating point, expected 8 or 16 bits")
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("its pixels are beyond 16 bits, expected 8 or 16 bits")
        return Image.fromarray(np.round(deep / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image


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
    return fit(decode(image), size, channels, resize)


def fit(picture: Image.Image, size: int, channels: int, resize: Resize) -> np.ndarray:
    """A picture of any size and mode as a uint8 array [size, size, channels]."""
    picture = resize_and_crop(to_channels(picture, channels), size, resize)
    return np.asarray(picture).reshape(size, size, channels)


def flip(images: np.ndarray, which: np.ndarray) -> np.ndarray:
    """A copy of images [N, H, W, C] in which those of `which`, bool [N], are mirrored.

    Left and right change places.
    """
    return np.where(which[:, None, None, None], images[:, :, ::-1], images)
