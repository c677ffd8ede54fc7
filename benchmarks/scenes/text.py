"""The table of benchmarks.scenes as Markdown, its judgement, and its picture."""

from collections.abc import Mapping

import numpy as np
from PIL import Image

from benchmarks.scenes.measures import Row
from benchmarks.scenes.models import MODELS, SCALES, Model, Settings
from benchmarks.scenes.truth import SPLITS, Scenes
from multistep_cm.reporting.grids import comparison_grid

MARKS = (
    "<!-- results: python -m benchmarks.scenes -->",
    "<!-- end of results -->",
)
COLUMNS: Mapping[str, tuple[str, float, int]] = {
    "said": ("caption accuracy, %", 100, 1),
    "digits": ("digits, %", 100, 1),
    "positions": ("positions, %", 100, 1),
    "sizes": ("sizes, %", 100, 1),
    "captions": ("whole captions, %", 100, 1),
    "fd": ("1000 x FD", 1000, 0),
}
"""Key of a row to its heading, what it is multiplied with, and its digits."""

TARGETS = {8: (0.97, 1.5), 16: (0.97, 1.25)}
"""Of a student's steps: the share of the teacher's caption accuracy, the most FD."""

PICTURED = 6
PICTURED_SCALE = 0.5


def row_text(row: Row) -> str:
    """One measurement in a line."""
    return ", ".join(
        f"{heading} {factor * row[key]:.{digits}f}"
        for key, (heading, factor, digits) in COLUMNS.items()
    )


def key_of(settings: Settings, model: Model, kind: str, scale: float) -> str:
    """The name of a measurement, as `run.row_key` gives it."""
    steps = model.sampling_steps(settings)
    return f"{model.name} {kind} {scale:g} {steps} {settings.num_images}"


def tables(found: Mapping[str, Row], settings: Settings) -> str:
    """A table for each split, with what was measured, and the judgement."""
    lines: list[str] = []
    headings = ["guidance", "model", "steps", *(h for h, _, _ in COLUMNS.values())]
    for kind, split in SPLITS.items():
        lines += [
            f"**Captions of `{split}`: {kind} combinations, {settings.num_images} "
            "images**",
            "",
            _line(headings),
            "|---" * len(headings) + "|",
        ]
        for which, title in (
            ("real", "real scenes"),
            ("other", "real scenes of other captions"),
        ):
            if f"{which} {kind}" in found:
                row = found[f"{which} {kind}"]
                lines.append(_line(["", title, "", *cells(row)]))
        for scale in SCALES:
            for model in MODELS:
                key = key_of(settings, model, kind, scale)
                if key in found:
                    steps = str(model.sampling_steps(settings))
                    start = [f"{scale:g}", model.title, steps]
                    lines.append(_line([*start, *cells(found[key])]))
        lines.append("")
    return "\n".join([*lines, *judgement(found, settings)])


def judgement(found: Mapping[str, Row], settings: Settings) -> list[str]:
    """Students against the guided teacher on held-out captions, target by target."""
    teacher = MODELS[0]
    lines = ["On held-out captions, against the diffusion model of the same guidance:"]
    for model in MODELS:
        if model.steps not in TARGETS:
            continue
        share, most = TARGETS[model.steps]
        for scale in SCALES:
            keys = [key_of(settings, m, "held-out", scale) for m in (teacher, model)]
            if not scale or not all(key in found for key in keys):
                continue
            its, own = (found[key] for key in keys)
            kept, ratio = own["said"] / its["said"], own["fd"] / its["fd"]
            lines.append(
                f"- {model.steps} steps, guidance {scale:g}: {100 * kept:.1f} % of its "
                f"caption accuracy (wanted {100 * share:g}: {_word(kept >= share)}), "
                f"{ratio:.2f} x its FD (wanted {most:g}: {_word(ratio <= most)})."
            )
    return lines


def picture(settings: Settings, scenes: Scenes) -> Image.Image:
    """One column a held-out caption, one row a model, all from the same noise.

    Models that were not measured have no row.
    """
    rows = [("real scene", scenes.images[:PICTURED])]
    for model in MODELS:
        key = key_of(settings, model, "held-out", PICTURED_SCALE)
        path = settings.workdir / f"{key.replace(' ', '_')}.npy"
        if not path.exists():
            continue
        name = f"{model.title}, {model.sampling_steps(settings)}"
        rows.append((name, np.load(path)[:PICTURED]))
    title = f"Captions never trained on, guidance {PICTURED_SCALE:g}"
    captions = scenes.captions[:PICTURED]
    return comparison_grid(rows, captions=captions, title=title, cell=128)


def cells(row: Row) -> list[str]:
    """The numbers of a row."""
    return [
        f"{factor * row[key]:.{digits}f}"
        for key, (_, factor, digits) in COLUMNS.items()
    ]


def _word(holds: bool) -> str:
    return "reached" if holds else "missed"


def _line(values: list[str]) -> str:
    return "| " + " | ".join(values) + " |"
