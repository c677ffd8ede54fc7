"""Pieces of a page: escaped text, tables, strips of pictures, and the page itself.

The page loads nothing: its pictures and its style are in it, it has no script, and its
content security policy forbids the rest.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from multistep_cm.reporting.content import Pictures, Strip
from multistep_cm.reporting.style import STYLE

CELL = 48
"""Pixels that an image is enlarged to, by a whole factor, if it is smaller."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def escape(value: object) -> str:
    """Text that is safe between tags and in quoted attributes."""
    return html.escape(str(value), quote=True)


def page(title: str, body: str) -> str:
    """A whole document."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[bool]
) -> str:
    """A table that scrolls inside its own box; cells are markup, heads are text.

    The first cell of a row is its heading and stays in sight. `numbers` says which
    columns hold numbers.
    """
    kinds = [' class="number"' if is_number else "" for is_number in numbers]
    head = "".join(
        f'<th scope="col"{kind}>{escape(text)}</th>'
        for text, kind in zip(heads, kinds, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row"{kinds[0]}>{row[0]}</th>'
        + "".join(
            f"<td{kind}>{cell}</td>"
            for cell, kind in zip(row[1:], kinds[1:], strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    return wide(
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"
    )


def wide(content: str) -> str:
    """A box that scrolls sideways, with fingers, wheel or keys."""
    return f'<div class="wide" tabindex="0">{content}</div>'


def facts(values: Mapping[str, object]) -> str:
    """Names and values."""
    entries = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in values.items()
    )
    return f'<dl class="facts">{entries}</dl>'


def code(text: str) -> str:
    """Text as it is."""
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def details(summary: str, content: str) -> str:
    """Content that opens on demand."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}</details>"


def pictures(value: Pictures) -> str:
    """Strips under one another, with a text above each column."""
    rows = []
    if value.heads:
        pitch = _pitch(value.strips[0].images)
        columns = f"grid-template-columns:repeat({len(value.heads)},{pitch}px)"
        heads = "".join(f"<span>{escape(head)}</span>" for head in value.heads)
        rows.append(
            f'<tr><td></td><td><div class="heads" style="{columns}">{heads}</div>'
            "</td></tr>"
        )
    rows += [
        f'<tr><th scope="row">{escape(strip.label)}</th><td>{_image(strip)}</td></tr>'
        for strip in value.strips
    ]
    body = "\n".join(rows)
    return (
        f"<figure><figcaption>{escape(value.caption)}</figcaption>"
        + wide(f'<table class="pictures"><tbody>\n{body}\n</tbody></table>')
        + "</figure>"
    )


def _image(strip: Strip) -> str:
    """The strip as one picture of its own pixels; the browser enlarges it."""
    count = len(strip.images)
    joined = _join(strip.images)
    factor = _factor(strip.images)
    file = io.BytesIO()
    Image.fromarray(joined, "RGBA").save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    plural = "s" if count > 1 else ""
    return (
        f'<img alt="{escape(strip.label)}: {count} image{plural}" '
        f'width="{joined.shape[1] * factor}" height="{joined.shape[0] * factor}" '
        f'src="data:image/png;base64,{data}">'
    )


def _join(images: np.ndarray) -> np.ndarray:
    """Images side by side, each with a clear gap after it: uint8 [height, .., 4]."""
    images = np.asarray(images)
    well_formed = images.ndim == 4 and images.shape[-1] in (1, 3) and images.size
    if images.dtype != np.uint8 or not well_formed:
        raise ValueError(
            "a strip must be uint8 [count, height, width, 1 or 3], not empty; got "
            f"{images.dtype} {list(images.shape)}"
        )
    count, height, width = images.shape[:3]
    cells = np.zeros((count, height, width + _gap(images), 4), np.uint8)
    cells[:, :, :width, :3] = images
    cells[:, :, :width, 3] = 255
    return np.concatenate(list(cells), axis=1)


def _gap(images: np.ndarray) -> int:
    return max(1, images.shape[2] // 16)


def _factor(images: np.ndarray) -> int:
    return max(1, CELL // max(images.shape[1:3]))


def _pitch(images: np.ndarray) -> int:
    """Pixels of the page from one image to the next."""
    return (images.shape[2] + _gap(images)) * _factor(images)
