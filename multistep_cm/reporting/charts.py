"""Line charts as inline SVG that follows the page's colours, light or dark.

Nothing here names a colour: a line has the class `c0`, `c1`, .. whose `color` the style
of the page sets, or a hue with its lightness where the order of the lines matters.
"""

import dataclasses
import html
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias

NUM_COLORS = 8
"""Classes `c0` .. that the style defines."""

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 10, 44
"""Pixels of a chart, and of its margins, before it is scaled to the page."""

HUES = (215.0, 15.0)
"""Degrees of the first and the last line of a ramp."""

Scale: TypeAlias = Literal["linear", "log", "log2"]
Point: TypeAlias = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Series:
    """One line. Points are left out that are not finite, or not positive on a log
    scale."""

    name: str
    points: Sequence[Point]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A horizontal line across the chart."""

    name: str
    y: float


@dataclasses.dataclass(frozen=True)
class Chart:
    """What a chart shows.

    Attributes:
      title: above it.
      x_label: name of the horizontal axis.
      y_label: name of the vertical axis.
      series: the lines.
      rules: horizontal lines, dashed.
      x_scale: linear, log (ticks at 1, 2, 5) or log2 (ticks at the points).
      y_scale: the same.
      markers: whether points are marked, each line's in its own shape.
      ramp: colours in the order of the lines, for lines that are a sequence.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    rules: Sequence[Rule] = ()
    x_scale: Scale = "linear"
    y_scale: Scale = "log"
    markers: bool = False
    ramp: bool = False


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Values to pixels, and where the ticks are."""

    place: Callable[[float], float]
    ticks: Sequence[float]


def chart_figure(chart: Chart) -> str:
    """The chart with its title and legend, as an HTML figure; "" without any point."""
    series: list[tuple[str, Series]] = []
    for index, line in enumerate(chart.series):
        plain = f'class="c{index % NUM_COLORS}"'
        points = [point for point in line.points if _is_drawable(point, chart)]
        color = _hue(index, chart) if chart.ramp else plain
        series.append((color, Series(line.name, points)))
    points = [point for _, line in series for point in line.points]
    if not points:
        return ""
    rules = [rule for rule in chart.rules if _fits(rule.y, chart.y_scale)]
    ys = [y for _, y in points] + [rule.y for rule in rules]
    x_axis = _axis([x for x, _ in points], chart.x_scale, LEFT, WIDTH - RIGHT)
    y_axis = _axis(ys, chart.y_scale, HEIGHT - BOTTOM, TOP)
    drawn = [*_frame(chart, x_axis, y_axis)]
    legend = []
    for index, rule in enumerate(rules):
        name = f"{rule.name}: {number(rule.y)}"
        y = y_axis.place(rule.y)
        path = f'<path class="rule r{index}" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        drawn.append(f"<g>{_tooltip(name)}{path}</g>")
        legend.append((f'<path class="rule r{index}" d="M1 7H27"/>', name))
    for index, (color, line) in enumerate(series):
        if line.points:
            drawn.append(f"<g {color}>{_line(line, chart, index, x_axis, y_axis)}</g>")
            shape = _marker(index, 14, 7) if chart.markers else ""
            swatch = f'<g {color}><path class="line" d="M1 7H27"/>{shape}</g>'
            legend.append((swatch, line.name))
    title = html.escape(chart.title)
    entries = "".join(
        f'<li><svg viewBox="0 0 28 14" aria-hidden="true">{swatch}</svg>'
        f"{html.escape(name)}</li>"
        for swatch, name in legend
    )
    return (
        f'<figure class="chart"><figcaption>{title}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        f'{"".join(drawn)}</svg><ul class="legend">{entries}</ul></figure>'
    )


def number(value: float) -> str:
    """Short, for axes and legends: four digits, thousands as k."""
    if abs(value) >= 10_000 and value % 100 == 0 and abs(value) < 1e6:
        return f"{value / 1000:g}k"
    text = f"{value:.4g}"
    if value and abs(value) < 1e-3:
        text = f"{value:.3e}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    return text


def ticks(
    low: float, high: float, scale: Scale, values: Sequence[float]
) -> list[float]:
    """Where an axis from `low` to `high` that shows `values` is labelled."""
    if scale == "log2":
        return _thin(sorted(set(values)), 9)
    if scale == "log":
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 2, 5), (1,)):
            marks = [step * 10.0**exponent for exponent in exponents for step in steps]
            inside = [mark for mark in marks if low <= mark <= high]
            if len(inside) < 3:
                break
            if len(inside) <= 8:
                return inside
        else:
            return _thin(inside, 8)
    rough = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first, last = math.ceil(low / step), math.floor(high / step + 1e-9)
    return [float(f"{step * index:.12g}") for index in range(first, last + 1)]


def _thin(values: Sequence[float], most: int) -> list[float]:
    """Every nth value, so that at most so many are left."""
    return list(values[:: -(-len(values) // most)])


def _fits(value: float, scale: Scale) -> bool:
    return math.isfinite(value) and (scale == "linear" or value > 0)


def _is_drawable(point: Point, chart: Chart) -> bool:
    return _fits(point[0], chart.x_scale) and _fits(point[1], chart.y_scale)


def _axis(values: Sequence[float], scale: Scale, begin: float, end: float) -> _Axis:
    """An axis over the values and a little more."""
    low, high = min(values), max(values)
    if scale == "linear":
        margin = (high - low) * 0.02 or abs(high) * 0.1 or 1.0
        low, high = low - margin * (low != 0), high + margin
        share = lambda value: (value - low) / (high - low)  # noqa: E731
    else:
        factor = max((high / low) ** 0.06, 1.1)
        low, high = low / factor, high * factor
        length = math.log(high / low)
        share = lambda value: math.log(value / low) / length  # noqa: E731
    return _Axis(
        place=lambda value: begin + share(value) * (end - begin),
        ticks=ticks(low, high, scale, values),
    )


def _frame(chart: Chart, x_axis: _Axis, y_axis: _Axis) -> Iterator[str]:
    """Grid lines, numbers and names of the axes."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="end">{number(tick)}</text>'
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        yield f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 16}" class="mid">{number(tick)}</text>'
    yield f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
    middle = (LEFT + right) / 2
    x_label, y_label = html.escape(chart.x_label), html.escape(chart.y_label)
    yield f'<text x="{middle}" y="{HEIGHT - 8}" class="mid name">{x_label}</text>'
    place = f"translate(12 {(TOP + bottom) / 2}) rotate(-90)"
    yield f'<text transform="{place}" class="mid name">{y_label}</text>'


def _line(line: Series, chart: Chart, index: int, x_axis: _Axis, y_axis: _Axis) -> str:
    """The line, and its points where they are marked."""
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in line.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    drawn = [f'{_tooltip(line.name)}<path class="line" d="M{path}"/>']
    if chart.markers:
        for point, place in zip(line.points, places, strict=True):
            x, y = (number(value) for value in point)
            told = f"{line.name}, {chart.x_label} {x}: {y}"
            drawn.append(f"<g>{_tooltip(told)}{_marker(index, *place)}</g>")
    return "".join(drawn)


def _marker(index: int, x: float, y: float) -> str:
    """A filled shape around a place: circle, square, diamond or triangle."""
    shapes = (
        "m-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
        "m-4-4h8v8h-8z",
        "m0-5.5l5.5 5.5l-5.5 5.5l-5.5-5.5z",
        "m0-5.5l5.2 9.5h-10.4z",
    )
    return f'<path class="mark" d="M{x:.1f} {y:.1f}{shapes[index % len(shapes)]}"/>'


def _hue(index: int, chart: Chart) -> str:
    """The colour of a line in an ordered chart, as an attribute."""
    first, last = HUES
    share = index / max(len(chart.series) - 1, 1)
    return f'class="ramp" style="--hue:{first + share * (last - first):.0f}"'


def _tooltip(text: str) -> str:
    return f"<title>{html.escape(text)}</title>"
