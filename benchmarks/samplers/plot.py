"""The measured samplers as a picture: error against network calls, log-log."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.samplers.layout import (
    HEADINGS,
    Results,
    budgets_of,
    find,
    methods_of,
    presets_of,
)
from benchmarks.samplers.measures import METRICS
from multistep_cm.files import written_aside

# The colours of Okabe and Ito, which the colour-blind can tell apart. Marks differ too.
STYLES: dict[str, dict[str, Any]] = {
    "ddim": {"color": "#000000", "marker": "o"},
    "addim_analytic": {"color": "#D55E00", "marker": "s"},
    "addim_eta_0.5": {"color": "#E69F00", "marker": "v", "linestyle": ":"},
    "addim_eta_0.75": {"color": "#E69F00", "marker": "D"},
    "addim_eta_1": {"color": "#E69F00", "marker": "^", "linestyle": "--"},
    "heun_uniform": {"color": "#0072B2", "marker": "P"},
    "heun_karras": {"color": "#56B4E9", "marker": "X", "linestyle": "--"},
    "heun_edm": {"color": "#56B4E9", "marker": "<", "linestyle": ":"},
    "heun_angle": {"color": "#CC79A7", "marker": "h"},
    "ancestral": {"color": "#009E73", "marker": "*", "linestyle": "-."},
}


def draw(results: Results, path: Path) -> None:
    """One row for each measure, one column for each preset, as a PNG.

    Floors are grey bands, up to their mean and two spreads. Of the variance ratio the
    distance from 1 is drawn; where variance is gained the mark is hollow. Lines that
    leave at the top are worse than any sampler at one call.
    """
    presets = presets_of(results)
    # Not by pyplot, whose figures are global and may open a window.
    figure = Figure(figsize=(3.3 * len(presets) + 0.6, 9.0), layout="constrained")
    panels = figure.subplots(len(METRICS), len(presets), sharex="col", squeeze=False)
    for row, metric in enumerate(METRICS):
        for column, preset in enumerate(presets):
            _draw_panel(panels[row, column], results, preset, metric)
        label = HEADINGS[metric]
        panels[row, 0].set_ylabel(
            "|variance ratio - 1|" if metric == "variance_ratio" else label
        )
    for column, preset in enumerate(presets):
        panels[0, column].set_title(preset)
        panels[-1, column].set_xlabel("network calls")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    # Few colours are in it: a palette makes the file a third as large.
    picture = Image.open(buffer).convert("RGB").quantize(64)
    with written_aside(path) as aside:
        picture.save(aside, format="PNG", optimize=True)


def _draw_panel(axes: Axes, results: Results, preset: str, metric: str) -> None:
    floor = results["floors"][preset][metric]
    is_ratio = metric == "variance_ratio"
    top = (abs(floor["mean"] - 1) if is_ratio else floor["mean"]) + 2 * floor["spread"]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.axhspan(1e-12, top, color="#DDDDDD", label="floor", zorder=0)
    at_one_call = []
    for method in methods_of(results):
        points = {}
        for budget in budgets_of(results, preset):
            calls = find(results, preset, method, budget, "calls")
            if calls is not None:
                points[calls] = find(results, preset, method, budget, metric)
        calls, values = np.array(list(points)), np.array(list(points.values()))
        heights = np.abs(values - 1) if is_ratio else values
        at_one_call.append(heights[0])
        style = {"linestyle": "-", **STYLES[method]}
        axes.plot(calls, heights, label=method, markersize=5, linewidth=1.2, **style)
        if is_ratio:
            gained = values > 1
            axes.plot(
                calls[gained],
                heights[gained],
                linestyle="",
                marker=style["marker"],
                color=style["color"],
                markerfacecolor="white",
                markersize=5,
            )
    # From the floor to the worst of one call: what explodes leaves at the top.
    axes.set_ylim(top / 3, 6 * max(at_one_call))
    budgets = budgets_of(results, preset)[::2]
    axes.set_xticks(budgets, [str(budget) for budget in budgets], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3, linewidth=0.5)
