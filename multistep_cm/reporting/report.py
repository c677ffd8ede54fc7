"""A report as one HTML file: a function of what it holds, without files or clocks."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from multistep_cm.reporting import markup
from multistep_cm.reporting.averages import best_of_runs, decay_charts
from multistep_cm.reporting.charts import Chart, chart_figure
from multistep_cm.reporting.content import Measured, Report, Run
from multistep_cm.reporting.curves import as_number, loss_charts, quality_charts
from multistep_cm.reporting.markup import escape
from multistep_cm.reporting.tables import COLUMNS

FLOOR = (
    "The floor is the distance of one half of the real images to the other. Both are "
    "small, so a good model that is measured with many samples can score below it."
)


def render(report: Report) -> str:
    """The page."""
    sections = [
        ("Results", _results(report)),
        ("Samples from the same noise", _samples(report)),
        *((f"Run {run.name}", _run(run)) for run in report.runs),
        ("What differs", _differences(report.runs)),
        ("How to make this again", _commands(report)),
    ]
    shown = [
        (title, f"part-{index}", text)
        for index, (title, text) in enumerate(sections)
        if text
    ]
    links = "".join(
        f'<li><a href="#{anchor}">{escape(title)}</a></li>'
        for title, anchor, _ in shown
    )
    body = "\n".join(
        [
            f"<header><h1>{escape(report.title)}</h1>",
            f'<p class="faint">{escape(report.made)}</p>',
            f"<nav><ul>{links}</ul></nav></header>",
            _missing(report),
            "<main>",
            *(
                f'<section id="{anchor}"><h2>{escape(title)}</h2>\n{text}\n</section>'
                for title, anchor, text in shown
            ),
            "</main>",
        ]
    )
    return markup.page(report.title, body)


def cell(key: str, value: Any) -> str:
    """A value of `evaluation.json` as markup: short, the whole number in `value`."""
    if value is None:
        return ""
    if isinstance(value, (dict, list)):
        return escape(json.dumps(value))
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,64}(-dirty)?", value):
        return f'<abbr title="{value}">{value[:10]}…</abbr>'  # a commit or a sha256
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(value)
    form = COLUMNS[key][1] if key in COLUMNS else "{:.6g}"
    text = str(value) if isinstance(value, int) else form.format(value)
    return f'<data value="{value!r}">{text}</data>'


def results_table(measured: Sequence[Measured]) -> str:
    """Every row of every run, with all that `evaluation.json` says of it."""
    rows = [
        (run.run, row) for run in measured for row in sorted(run.rows, key=_row_order)
    ]
    filled = {key: 0 for _, row in rows for key in row if row[key] is not None}
    keys = [key for key in COLUMNS if key in filled]
    keys += [key for key in filled if key not in COLUMNS]
    heads = [COLUMNS[key][0] if key in COLUMNS else _words(key) for key in keys]
    numbers = [
        all(isinstance(row.get(key), int | float | None) for _, row in rows)
        for key in keys
    ]
    cells = (
        [escape(run), *(cell(key, row.get(key)) for key in keys)] for run, row in rows
    )
    return markup.table(["run", *heads], cells, [False, *numbers])


def _results(report: Report) -> str:
    if not any(run.rows for run in report.measured):
        return ""
    charts = [*quality_charts(report.measured), *decay_charts(report.measured)]
    parts = [_charts(charts)]
    if any(run.facts.get("floor") is not None for run in report.measured):
        parts.append(f'<p class="faint">{FLOOR}</p>')
    parts += [
        f"<p>{escape(sentence)}</p>" for sentence in best_of_runs(report.measured)
    ]
    parts.append(results_table(report.measured))
    return "\n".join([*parts, *_measured_facts(report.measured)])


def _measured_facts(measured: Sequence[Measured]) -> Iterator[str]:
    """What the files say beside their rows, once for runs that say the same."""
    groups: dict[str, list[Measured]] = {}
    for run in measured:
        groups.setdefault(json.dumps(run.facts, sort_keys=True), []).append(run)
    for runs in groups.values():
        said = {_words(key): _fact(value) for key, value in runs[0].facts.items()}
        if said:
            names = ", ".join(run.run for run in runs)
            title = f"Measured with: {names}" if len(groups) > 1 else "Measured with"
            yield markup.details(title, markup.facts(said))


def _fact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _samples(report: Report) -> str:
    return markup.pictures(report.samples) if report.samples else ""


def _run(run: Run) -> str:
    config = json.dumps(_nested(run.config), indent=2, sort_keys=True)
    parts = [markup.facts(run.facts), _charts(loss_charts(run.metrics))]
    if run.trajectories:
        parts.append("<h3>From noise to images, step by step</h3>")
        parts.append(markup.pictures(run.trajectories))
    parts.append(markup.details("Config", markup.code(config)))
    return "\n".join(filter(None, parts))


def _differences(runs: Sequence[Run]) -> str:
    """The config keys in which the runs differ."""
    keys = sorted({key for run in runs for key in run.config})
    values = {key: [json.dumps(run.config.get(key)) for run in runs] for key in keys}
    rows = [
        [escape(key), *map(escape, texts)]
        for key, texts in values.items()
        if len(set(texts)) > 1
    ]
    if not rows:
        return ""
    heads = ["config key", *(run.name for run in runs)]
    return markup.table(heads, rows, [False] * len(heads))


def _commands(report: Report) -> str:
    if not report.commands:
        return ""
    return markup.code("\n".join(report.commands)) + markup.facts(report.versions)


def _missing(report: Report) -> str:
    entries = "".join(
        f"<li>{escape(item.what)}"
        + (f"{markup.code(item.command)}" if item.command else "")
        + "</li>"
        for item in report.missing
    )
    if not entries:
        return ""
    return (
        '<aside class="missing"><strong>What is missing</strong>'
        f"<ul>{entries}</ul></aside>"
    )


def _charts(charts: Sequence[Chart]) -> str:
    figures = "\n".join(filter(None, map(chart_figure, charts)))
    return f'<div class="charts">\n{figures}\n</div>' if figures else ""


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys to nested ones."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return nested


def _words(key: str) -> str:
    return key.replace("_", " ")


def _row_order(row: Mapping[str, Any]) -> tuple[str, float]:
    return str(row.get("method")), as_number(row.get("steps")) or 0.0
