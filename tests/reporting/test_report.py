"""The page: complete, escaped, alone, and with the numbers that were measured."""

import math
import re
from collections.abc import Iterator

import numpy as np
import pytest

from multistep_cm.reporting.content import Pictures, Report, Run, Strip
from multistep_cm.reporting.markup import pictures
from multistep_cm.reporting.report import cell, render
from tests.reporting.browser import Page, find_chromium, open_page
from tests.reporting.pages import HOSTILE, PageReader, make_report, numbers_of

NEEDS = (
    "no Chromium here (apt-get install chromium): the page is not shown to a browser"
)


@pytest.fixture(scope="module")
def html() -> str:
    return render(make_report())


@pytest.fixture(scope="module")
def page(html: str) -> PageReader:
    return PageReader(html)


def test_it_holds_every_number_in_full(page: PageReader) -> None:
    expected = [n for run in make_report().measured for n in numbers_of(run.rows)]
    assert sorted(float(value) for value, _ in page.data) == sorted(expected)
    shown = dict(page.data)
    assert shown["0.0123456789"] == "0.0123"
    assert shown["0.99"] == "99.0%"


def test_tags_are_closed_and_nothing_is_loaded(html: str, page: PageReader) -> None:
    assert not page.open
    assert {"script", "iframe", "object"}.isdisjoint(tag for tag, _ in page.elements)
    for tag, values in page.elements:
        for name in ("src", "href", "xlink:href", "action"):
            target = values.get(name, "#")
            assert target.startswith(("#", "data:")), (tag, target)
        assert not any(name.startswith("on") for name in values)
    assert "@import" not in html
    assert "url(" not in html
    policies = [v["content"] for t, v in page.elements if "http-equiv" in v]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_whatever_it_is_told_is_text(html: str, page: PageReader) -> None:
    assert "<script" not in html.lower()
    # Title, run, caption, strip, facts, config, commands, what is missing, ..
    assert page.text.count(HOSTILE) > 15


def test_links_lead_somewhere_and_every_part_has_one(page: PageReader) -> None:
    anchors = {values["id"] for _, values in page.elements if "id" in values}
    links = [v["href"][1:] for tag, v in page.elements if tag == "a"]
    assert set(links) == anchors
    assert len(links) == len(anchors) == 6


def test_pictures_are_their_own_pixels(page: PageReader) -> None:
    found = page.images()
    assert len(found) == 4
    report = make_report()
    assert report.samples
    for image, value in zip(found, report.samples.strips, strict=False):
        assert image.shape == (8, 3 * 9, 4)
        for index, pixels in enumerate(value.images):
            left = index * 9
            drawn = image[:, left : left + 8]
            np.testing.assert_array_equal(
                drawn[..., :3], np.broadcast_to(pixels, (8, 8, 3))
            )
            assert (drawn[..., 3] == 255).all()
            assert (image[:, left + 8] == 0).all()
    sizes = [(v["width"], v["height"]) for t, v in page.elements if t == "img"]
    assert sizes[0] == (str(3 * 9 * 6), str(8 * 6))


def test_large_images_are_not_made_larger() -> None:
    value = Pictures("x", (), [Strip("y", np.ones((2, 64, 64, 3), np.uint8))])
    assert 'width="136" height="64"' in pictures(value)


def test_a_strip_of_another_form_is_refused() -> None:
    value = Pictures("x", (), [Strip("y", np.ones((2, 8, 8), np.uint8))])
    with pytest.raises(ValueError, match="a strip must be uint8"):
        pictures(value)


def test_a_report_of_nothing_is_a_page() -> None:
    run = Run("a", {}, {"method": "cd"})
    page = PageReader(render(Report("title", "today", [run])))
    assert "title" in page.text
    assert "Results" not in page.text
    assert not page.images()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("frechet_distance", None, ""),
        ("frechet_distance", 0.12345, '<data value="0.12345">0.1235</data>'),
        ("steps", 4, '<data value="4">4</data>'),
        ("new", 0.123456789, '<data value="0.123456789">0.123457</data>'),
        ("method", "<b>", "&lt;b&gt;"),
        ("flag", True, "True"),
        ("commit", "ab" * 20, f'<abbr title="{"ab" * 20}">ababababab…</abbr>'),
        ("commit", "abcd", "abcd"),
        ("spread", [0.1, 0.2], "[0.1, 0.2]"),
        ("fid", math.inf, '<data value="inf">inf</data>'),
    ],
)
def test_a_cell(key: str, value: object, expected: str) -> None:
    assert cell(key, value) == expected


@pytest.fixture(scope="module")
def shown(html: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page in Chromium."""
    program = find_chromium()
    if program is None:
        pytest.skip(NEEDS)
    folder = tmp_path_factory.mktemp("chromium")
    (folder / "report.html").write_text(html)
    with open_page(program, folder / "profile") as page:
        page.open(folder / "report.html")
        yield page


IMAGES = """Promise.all([...document.images].map(async image => {
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  return [image.naturalWidth, image.naturalHeight, new Set(data).size,
    getComputedStyle(image).imageRendering];
}))"""


def test_a_browser_has_nothing_to_complain_of(shown: Page) -> None:
    assert not shown.complaints()
    assert len(shown.requests()) == 1  # the page
    assert shown.evaluate("document.title") == f"Runs {HOSTILE}"


def test_a_browser_sees_pixels_and_numbers(shown: Page) -> None:
    images = shown.evaluate(IMAGES)
    assert [image[:2] for image in images] == [[27, 8], [27, 8], [18, 8], [9, 8]]
    assert all(values > 20 and how == "pixelated" for _, _, values, how in images)
    cells = "[...document.querySelectorAll('td data')].map(d => [d.value, d.innerText])"
    expected = [n for run in make_report().measured for n in numbers_of(run.rows)]
    found = shown.evaluate(cells)
    assert sorted(float(value) for value, _ in found) == sorted(expected)
    assert all(text for _, text in found)


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_nothing_sticks_out_of_a_screen(shown: Page, width: int) -> None:
    shown.set_size(width, 800, mobile=width < 600)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    charts = "[...document.querySelectorAll('.chart > svg')].map(s => s.clientWidth)"
    widths = shown.evaluate(charts)
    assert len(widths) == 6
    assert all(250 < chart <= width for chart in widths)
    # The table is wider than a phone: it scrolls in its own box, its heads stay.
    table = "document.querySelector('.wide:has(data)')"
    scrolls = shown.evaluate(f"{table}.scrollWidth > {table}.clientWidth")
    assert scrolls
    shown.evaluate(f"{table}.scrollLeft = 150")
    left = f"{table}.querySelector('tbody th').getBoundingClientRect().left"
    assert shown.evaluate(f"{left} >= {table}.getBoundingClientRect().left")
    shown.evaluate(f"{table}.scrollLeft = 0")


COLORS = """[
  ['p, td, th, dt, dd, li, a, summary, figcaption, code', 'color'],
  ['svg text', 'fill'],
  ['svg .line', 'stroke'],
].flatMap(([selector, name]) => [...document.querySelectorAll(selector)].map(
  element => [name, getComputedStyle(element)[name]]))"""


@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read_by_day_and_by_night(shown: Page, dark: bool) -> None:
    shown.set_dark(dark)
    background = "getComputedStyle(document.body).backgroundColor"
    paper = luminance(shown.evaluate(background))
    assert (paper < 0.05) == dark
    colors = {(kind, color) for kind, color in shown.evaluate(COLORS)}
    assert len(colors) > 5
    for kind, color in colors:
        # WCAG 2.2: lines need 3, text 4.5.
        enough = 3 if kind == "stroke" else 4.5
        assert contrast(luminance(color), paper) > enough, (kind, color)


def luminance(color: str) -> float:
    """WCAG's relative luminance of `rgb(r, g, b)`."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(a: float, b: float) -> float:
    """WCAG's contrast ratio."""
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
