"""Image functions against PIL and numpy."""

import io

import numpy as np
import pytest
from PIL import Image

from multistep_cm.data import transforms

RNG = np.random.default_rng(0)
RESIZES: tuple[transforms.Resize, ...] = ("area", "bilinear", "bicubic")


def random_image(*shape: int) -> np.ndarray:
    return RNG.integers(256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_that_fits_is_unchanged(
    resize: transforms.Resize, channels: int
) -> None:
    image = random_image(8, 8, channels)
    np.testing.assert_array_equal(
        transforms.to_array(image, 8, channels, resize), image
    )


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_is_what_it_holds(resize: transforms.Resize, channels: int) -> None:
    image = random_image(8, 8, channels)
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "PNG")
    found = transforms.to_array(file.getvalue(), 8, channels, resize)
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("shape", [(8, 8), (8, 12), (16, 8), (24, 36)])
def test_area_is_the_mean_of_blocks(shape: tuple[int, int]) -> None:
    image = random_image(*shape, 3)
    found = transforms.to_array(image, 4, 3, "area")
    factor = min(shape) // 4
    height, width = (n // factor for n in shape)
    means = image.reshape(height, factor, width, factor, 3).mean((1, 3))
    top, left = (height - 4) // 2, (width - 4) // 2
    expected = means[top : top + 4, left : left + 4]
    assert np.abs(found - expected).max() <= 0.5


@pytest.mark.parametrize(
    ("resize", "filter_name"), [("bilinear", "BILINEAR"), ("bicubic", "BICUBIC")]
)
def test_other_filters_are_those_of_pil(
    resize: transforms.Resize, filter_name: str
) -> None:
    image = random_image(10, 25, 3)
    resized = Image.fromarray(image).resize((12, 5), Image.Resampling[filter_name])
    expected = np.asarray(resized)[:, 3:8]
    np.testing.assert_array_equal(transforms.to_array(image, 5, 3, resize), expected)


def test_a_longer_side_is_cropped_at_the_centre() -> None:
    image = np.zeros((4, 8, 1), np.uint8)
    image[:, 2:6] = 255
    assert transforms.to_array(image, 4, 1, "area").min() == 255
    tall = image.transpose(1, 0, 2)
    assert transforms.to_array(tall, 4, 1, "area").min() == 255


@pytest.mark.parametrize("resize", RESIZES)
def test_upsampling_keeps_a_constant(resize: transforms.Resize) -> None:
    found = transforms.to_array(np.full((3, 5, 1), 77, np.uint8), 16, 1, resize)
    assert found.shape == (16, 16, 1)
    assert (found == 77).all()


def test_area_upsampling_repeats_pixels() -> None:
    image = random_image(4, 4, 1)
    found = transforms.to_array(image, 8, 1, "area")
    np.testing.assert_array_equal(found, image.repeat(2, 0).repeat(2, 1))


def test_channels() -> None:
    gray, color = random_image(5, 5, 1), random_image(5, 5, 3)
    as_color = transforms.to_array(gray, 5, 3, "area")
    np.testing.assert_array_equal(as_color, gray.repeat(3, -1))
    as_gray = transforms.to_array(color, 5, 1, "area")
    luma = color @ np.array([0.299, 0.587, 0.114])
    assert np.abs(as_gray[..., 0] - luma).max() < 1


@pytest.mark.parametrize("mode", ["P", "CMYK", "LA", "RGBA", "1"])
def test_files_of_other_modes_become_rgb(mode: str) -> None:
    file = io.BytesIO()
    original = Image.fromarray(random_image(6, 6, 3)).convert(mode)
    original.save(file, "TIFF")
    found = transforms.to_array(file.getvalue(), 6, 3, "area")
    np.testing.assert_array_equal(found, np.asarray(original.convert("RGB")))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 1), np.float32), "float32"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"\(2, 4, 4, 3\)"),
    ],
)
def test_an_array_that_is_no_image(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transforms.decode(image)


def test_flip_mirrors_those_asked_for() -> None:
    images = random_image(3, 4, 5, 2)
    before = images.copy()
    found = transforms.flip(images, np.array([True, False, True]))
    for index, flipped in enumerate([True, False, True]):
        expected = np.fliplr(images[index]) if flipped else images[index]
        np.testing.assert_array_equal(found[index], expected)
    np.testing.assert_array_equal(images, before)
