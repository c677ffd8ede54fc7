"""Grids of images with labels, as Pillow pictures.

Tiny images are enlarged by whole factors without smoothing, so that every pixel of the
data is a clean square. Nothing is ever made smaller. Labels are drawn in the font that
Pillow brings; it has ASCII and little more.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from multistep_cm.files import make_folder, written_aside

_PAPER = (255, 255, 255)
_INK = (36, 41, 47)
_FAINT = (101, 109, 118)
_MARGIN = 16
_CELL = 64

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def image_grid(
    images: np.ndarray,
    columns: int,
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    title: str | None = None,
    cell: int | None = None,
) -> Image.Image:
    """Lays images out row by row.

    Args:
      images: uint8 [count, height, width, channels], 1 (gray) or 3 (RGB) channels.
      columns: images in a row; the last row may be shorter.
      row_labels: one text a row, to its left.
      column_labels: one text a column, above it; a long one is cut to the width.
      captions: one text an image, below it, in as many lines as it needs.
      title: text above everything.
      cell: an image's longer side in the picture, in pixels: images are enlarged by
        the largest whole factor that fits. None is 64, and 128 with captions.

    Returns:
      an RGB picture.

    Raises:
      ValueError: images of another form, or a wrong number of labels.
    """
    cell = cell or (_CELL if captions is None else 2 * _CELL)
    pixels = _enlarge(_to_rgb(images), cell)
    count, height, width = pixels.shape[:3]
    if columns < 1:
        raise ValueError(f"columns must be at least 1; got {columns}")
    rows = -(-count // columns)
    _check_labels("row", row_labels, rows)
    _check_labels("column", column_labels, columns)
    _check_labels("image", captions, count)
    gap = max(2, min(height, width) // 16)
    font = _font(max(12, min(20, height // 4)))
    title_font = _font(max(15, min(26, height // 3)))

    left, top = _MARGIN, _MARGIN
    if title:
        top += _line_height(title_font) + gap * 2
    if column_labels:
        top += _line_height(font) + gap
    if row_labels:
        left += max(_text_width(font, text) for text in row_labels) + 2 * gap + 4
    small = _font(12)
    said = [_wrap(small, text, width) for text in captions or ()]
    tops = [top]
    for row in range(rows):
        most = max(map(len, said[row * columns : (row + 1) * columns]), default=0)
        text_height = most * (_line_height(small) + 2) + gap if most else 0
        tops.append(tops[-1] + height + gap + text_height)
    right = left + columns * width + (columns - 1) * gap
    bottom = tops.pop() - gap
    full_width = max(right, _MARGIN + _text_width(title_font, title or ""))
    picture = Image.new("RGB", (full_width + _MARGIN, bottom + _MARGIN), _PAPER)

    for i, image in enumerate(pixels):
        row, column = divmod(i, columns)
        place = (left + column * (width + gap), tops[row])
        picture.paste(Image.fromarray(image), place)
    draw = ImageDraw.Draw(picture)
    if title:
        draw.text((_MARGIN, _MARGIN), title, _INK, title_font, anchor="la")
    for column, text in enumerate(column_labels or ()):
        middle = left + column * (width + gap) + width // 2
        text = _cut(font, text, width)
        draw.text((middle, top - gap), text, _FAINT, font, anchor="md")
    for row, text in enumerate(row_labels or ()):
        middle = tops[row] + height // 2
        draw.text((_MARGIN, middle), text, _INK, font, anchor="lm")
    for i, lines in enumerate(said):
        row, column = divmod(i, columns)
        place = (left + column * (width + gap), tops[row] + height + gap // 2)
        draw.multiline_text(place, "\n".join(lines), _INK, small, spacing=2)
    return picture


def comparison_grid(
    rows: Sequence[tuple[str, np.ndarray]],
    *,
    column_labels: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    title: str | None = None,
    cell: int | None = None,
) -> Image.Image:
    """One row a method, with its name at the left: the same noise in each column.

    Args:
      rows: name and images uint8 [count, height, width, channels] of each method, all
        of one shape.
      column_labels: one text a column, such as the classes.
      captions: one text a column, below the last row, in as many lines as it needs.
      title: text above everything.
      cell: see `image_grid`.

    Raises:
      ValueError: no row, rows of different shapes, or what `image_grid` raises for.
    """
    shapes = {name: np.shape(images) for name, images in rows}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"rows must be images of one shape; got {shapes}")
    columns = len(rows[0][1])
    if captions is not None:
        captions = [*[""] * (columns * (len(rows) - 1)), *captions]
    return image_grid(
        np.concatenate([images for _, images in rows]),
        columns=columns,
        row_labels=[name for name, _ in rows],
        column_labels=column_labels,
        captions=captions,
        title=title,
        cell=cell,
    )


def save_png(path: str | Path, image: Image.Image) -> Path:
    """Writes a PNG aside and renames it; makes missing folders; returns `path`.

    Raises UserError when it cannot be written.
    """
    path = Path(path)
    make_folder(path.parent)
    with written_aside(path) as aside:
        image.save(aside, format="PNG", optimize=True)
    return path


def _to_rgb(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    well_formed = images.ndim == 4 and images.shape[-1] in (1, 3) and images.size
    if images.dtype != np.uint8 or not well_formed:
        raise ValueError(
            "images must be uint8 [count, height, width, 1 or 3], not empty; "
            f"got {images.dtype} {list(images.shape)}"
        )
    return np.broadcast_to(images, (*images.shape[:3], 3))


def _enlarge(images: np.ndarray, cell: int) -> np.ndarray:
    factor = max(1, cell // max(images.shape[1:3]))
    return np.ascontiguousarray(images.repeat(factor, axis=1).repeat(factor, axis=2))


def _check_labels(what: str, labels: Sequence[str] | None, expected: int) -> None:
    if labels is not None and len(labels) != expected:
        raise ValueError(
            f"{expected} {what}s need {expected} labels, not {len(labels)}"
        )


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _text_width(font: Font, text: str) -> int:
    return int(np.ceil(font.getlength(text)))


def _line_height(font: Font) -> int:
    if isinstance(font, ImageFont.FreeTypeFont):
        ascent, descent = font.getmetrics()
        return ascent + descent
    return int(font.getbbox("Ag")[3])


def _wrap(font: Font, text: str, width: int) -> list[str]:
    """Lines of whole words that fit; a word that does not is cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_cut(font, word, width))
    return lines


def _cut(font: Font, text: str, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
