"""Geometry of the grids, read from their pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multistep_cm.reporting.grids import comparison_grid, image_grid, save_png

PAPER = np.array([255, 255, 255])
RED, BLUE = (255, 0, 0), (0, 0, 255)


def flat(color: tuple[int, int, int], count: int, side: int = 8) -> np.ndarray:
    return np.broadcast_to(np.array(color, np.uint8), (count, side, side, 3))


def box(picture: Image.Image, color: tuple[int, int, int]) -> tuple[int, ...]:
    """First and past-the-last row and column of a color."""
    rows, columns = np.nonzero((np.asarray(picture) == color).all(axis=-1))
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def test_images_lie_where_the_margins_say() -> None:
    images = np.concatenate([flat(RED, 1), flat((0, 255, 0), 3), flat(BLUE, 1)])
    picture = image_grid(images, columns=3)
    # 16 of margin, cells of 64, gaps of 4.
    assert picture.size == (16 * 2 + 3 * 64 + 2 * 4, 16 * 2 + 2 * 64 + 4)
    assert box(picture, RED) == (16, 80, 16, 80)
    assert box(picture, BLUE) == (84, 148, 84, 148)
    # The cell after the last image stays empty.
    assert (np.asarray(picture)[84:148, 152:] == PAPER).all()


def test_enlarging_is_by_whole_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), np.uint8)
    picture = np.asarray(image_grid(image, columns=1, cell=30))
    # 30 holds 8 three times.
    expected = np.kron(image[0, :, :, 0], np.ones((3, 3), np.uint8))
    assert picture.shape == (24 + 32, 24 + 32, 3)
    for channel in range(3):
        np.testing.assert_array_equal(picture[16:-16, 16:-16, channel], expected)


@pytest.mark.parametrize("shape", [(1, 100, 80, 3), (1, 80, 100, 1)])
def test_large_images_keep_their_pixels(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    picture = np.asarray(image_grid(image, columns=1, cell=64))
    expected = np.broadcast_to(image[0], (*shape[1:3], 3))
    np.testing.assert_array_equal(picture[16:-16, 16:-16], expected)


def test_labels_take_room_and_leave_ink() -> None:
    images = flat(BLUE, 4)
    plain = image_grid(images, columns=2)
    picture = image_grid(
        images,
        columns=2,
        row_labels=["first", "second"],
        column_labels=["0", "1"],
        title="a title that is much wider than the two columns below it",
    )
    top, bottom, left, right = box(picture, BLUE)
    assert (bottom - top, right - left) == (132, 132)
    assert top > 16 + 30
    assert left > 16 + 30
    pixels = np.asarray(picture)
    ink = (pixels != PAPER).any(axis=-1)
    assert picture.width > plain.width
    assert ink[16:top].any()  # title and column labels
    for row in (0, 1):  # each row's label, at its own height
        band = slice(top + row * 68, top + row * 68 + 64)
        assert ink[band, 16:left].any()
    # Nothing is drawn into the outer margins.
    for edge in (ink[:12], ink[-16:], ink[:, :14], ink[:, -16:]):
        assert not edge.any()


def test_a_long_column_label_stays_over_its_column() -> None:
    picture = image_grid(
        flat(BLUE, 2), columns=2, column_labels=["golden retriever", ""]
    )
    top, _, left, _ = box(picture, BLUE)
    columns = np.nonzero((np.asarray(picture)[:top] != PAPER).any(axis=(0, 2)))[0]
    assert columns.size
    assert left <= columns.min()
    assert columns.max() < left + 64


def test_comparison_has_one_row_a_method() -> None:
    rows = [("teacher", flat(RED, 3)), ("student", flat(BLUE, 3))]
    picture = comparison_grid(rows, column_labels=["a", "b", "c"])
    red, blue = box(picture, RED), box(picture, BLUE)
    assert red[2:] == blue[2:]
    assert red[3] - red[2] == 3 * 64 + 2 * 4
    assert blue[0] - red[1] == 4


def test_wrong_input_is_refused() -> None:
    images = flat(RED, 4)
    with pytest.raises(ValueError, match="uint8"):
        image_grid(images / 255.0, columns=2)
    with pytest.raises(ValueError, match="1 or 3"):
        image_grid(images[..., :2], columns=2)
    with pytest.raises(ValueError, match="not empty"):
        image_grid(images[:0], columns=2)
    with pytest.raises(ValueError, match="2 rows need 2 labels, not 1"):
        image_grid(images, columns=2, row_labels=["one"])
    with pytest.raises(ValueError, match="3 columns need 3 labels"):
        image_grid(images, columns=3, column_labels=["one"])
    with pytest.raises(ValueError, match="at least 1"):
        image_grid(images, columns=0)
    with pytest.raises(ValueError, match="one shape"):
        comparison_grid([("a", images), ("b", images[:2])])


def test_png_keeps_every_pixel_and_leaves_nothing_aside(tmp_path: Path) -> None:
    picture = image_grid(flat(RED, 2), columns=2)
    path = save_png(tmp_path / "samples" / "1.png", picture)
    with Image.open(path) as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), np.asarray(picture))
    assert [p.name for p in path.parent.iterdir()] == ["1.png"]


def test_captions_stand_below_their_images_in_lines_that_fit() -> None:
    images = np.zeros((3, 8, 8, 1), np.uint8)
    plain = image_grid(images, 2, cell=128)
    words = "a bright three above a small seven, on white"
    said = image_grid(images, 2, captions=["a two", words, ""], cell=128)
    assert said.width == plain.width
    grown = said.height - plain.height
    assert 30 < grown < 128  # several lines below the first row, none below the second
    pixels = np.asarray(said)[..., 0]
    below = pixels[16 + 128 : 16 + 128 + grown]
    assert (below[:, 16 : 16 + 128] < 200).any()
    assert (below[:, 16 + 128 + 8 : -16] < 200).any()
    assert (pixels[-16:] == 255).all()
    with pytest.raises(ValueError, match="3 images need 3 labels, not 2"):
        image_grid(images, 2, captions=["a", "b"])
