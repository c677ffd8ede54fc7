"""The measured costs as a picture: one panel an axis, log-log."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from multistep_cm.files import written_aside

LABELS = {
    "batch": "batch",
    "pixels": "pixels of a side",
    "width": "channels of the first level",
    "blocks": "blocks of a level",
    "student_steps": "steps of the student",
    "devices": "devices, 16 images each",
}

COLUMNS = 3


def draw(results: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Medians with their range, and what the FLOPs alone would make of the first."""
    # Not by pyplot, whose figures are global and may open a window.
    columns = min(COLUMNS, len(results))
    lines = -(-len(results) // columns)
    figure = Figure(figsize=(3.0 * columns, 3.0 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel in panels[len(results) :]:
        panel.remove()
    for panel, (name, rows) in zip(panels, results.items(), strict=False):
        sizes = [row["size"] for row in rows]
        middle = [row["median"] for row in rows]
        least = [row["median"] - min(row["cpu_seconds"]) for row in rows]
        most = [max(row["cpu_seconds"]) - row["median"] for row in rows]
        counted = [middle[0] * row["flops"] / rows[0]["flops"] for row in rows]
        panel.errorbar(
            sizes, middle, (least, most), color="#0072B2", marker="o", label="measured"
        )
        panel.plot(
            sizes, counted, color="#777777", linestyle="--", label="as FLOPs grow"
        )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        if max(middle) < 2 * min(middle):
            panel.set_ylim(min(middle) / 2, max(middle) * 2)
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
        panel.set_xlabel(LABELS[name])
        panel.grid(alpha=0.3, linewidth=0.5)
    panels[0].set_ylabel("CPU-seconds a step")
    panels[0].legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    picture = Image.open(buffer).convert("RGB").quantize(32)
    with written_aside(path) as aside:
        picture.save(aside, format="PNG", optimize=True)
