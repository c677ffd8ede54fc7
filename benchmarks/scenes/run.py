"""Train what is missing, measure what is missing, write the table and the picture.

  python -m benchmarks.scenes [--only=teacher,cd8] [--only_write]

A diffusion model of captioned scenes, its guidance distilled into one call, and
students of 16, 8 and 4 steps, every student told the scale of guidance. Everything is
kept in --workdir: the same command goes on where it was stopped.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from benchmarks.documents import replace_between
from benchmarks.scenes import text
from benchmarks.scenes.classifier import STEPS, Classifier, load_or_train
from benchmarks.scenes.measures import Row, caption_accuracy, measure, reference_moments
from benchmarks.scenes.models import MODELS, SCALES, Model, Settings, draw, train_model
from benchmarks.scenes.truth import SPLITS, read_scenes
from multistep_cm.commands.main import split_overrides
from multistep_cm.errors import UserError
from multistep_cm.files import write_text
from multistep_cm.reporting.grids import save_png

DOCS = Path(__file__).parents[2] / "docs"
NOISE_SEED = 1
"""Of the images; the same for every model."""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workdir", type=Path, default=Path("runs/scenes"))
    add("--seed", type=int, default=1, help="of training (default 1)")
    add("--teacher_steps", type=int, default=256, help="to sample it (default 256)")
    add("--num_images", type=int, default=1000, help="of each split (default 1000)")
    add("--longer", type=int, default=1, help="multiplies the training (default 1)")
    add("--students_longer", type=int, help="of students (default: as --longer)")
    add("--classifier_steps", type=int, default=STEPS, help=f"(default {STEPS})")
    add("--only", default="", help="names of models, or real; writes no document")
    add("--document", type=Path, default=DOCS / "text.md", help="of the table")
    add("--only_write", action="store_true", help="train and measure nothing")
    try:
        rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        arguments = parser.parse_args(rest)
        settings = Settings(
            arguments.workdir,
            arguments.seed,
            arguments.teacher_steps,
            arguments.num_images,
            arguments.longer,
            arguments.students_longer or arguments.longer,
            arguments.classifier_steps,
            tuple(sorted(overrides.items())),
        )
        names = arguments.only.split(",") if arguments.only else []
        cache = settings.workdir.resolve() / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        if not arguments.only_write:
            measure_all(settings, names)
        if names:
            return 0
        write(settings, arguments.document)
    except (UserError, OSError) as error:
        print(f"scenes: {error}", file=sys.stderr)
        return 2
    return 0


def measure_all(settings: Settings, names: Sequence[str]) -> None:
    """Train and measure the models of these names, all when there are none."""
    classifier = get_classifier(settings)
    if not names or "real" in names:
        measure_real(settings, classifier)
    for model in MODELS:
        if names and model.name not in names:
            continue
        begin = time.process_time()
        folder = train_model(model, settings)
        minutes = (time.process_time() - begin) / 60
        if minutes > 0.5:
            print(f"{model.name}: {minutes:.1f} minutes of CPU time", flush=True)
        for kind in SPLITS:
            for scale in SCALES:
                measure_model(settings, model, folder, classifier, kind, scale)


def get_classifier(settings: Settings) -> Classifier:
    """The one of this workdir, trained on the training scenes."""
    scenes = read_scenes(settings.data, "train")
    path, steps = settings.workdir / "classifier.npz", settings.classifier_steps
    return load_or_train(path, scenes, steps)


def measure_real(settings: Settings, classifier: Classifier) -> None:
    """Of real scenes, and of real scenes of other captions: the most, and chance."""
    for kind, split in SPLITS.items():
        scenes = read_scenes(settings.data, split)
        reference = reference_moments(classifier, scenes)
        first = scenes.first(settings.num_images)
        row = measure(classifier, first.images, first, reference)
        answers, _ = classifier.read(scenes.images)
        row |= caption_accuracy(answers, scenes)
        keep(settings, f"real {kind}", row)
        others = {key: np.roll(value, 1, axis=0) for key, value in answers.items()}
        by_chance = caption_accuracy(others, scenes)
        keep(settings, f"other {kind}", {**by_chance, "fd": row["fd"]})


def measure_model(
    settings: Settings,
    model: Model,
    folder: Path,
    classifier: Classifier,
    kind: str,
    scale: float,
) -> None:
    """Draw the captions of a split and measure the images, unless that is done."""
    key = row_key(settings, model, kind, scale)
    if key in rows(settings):
        return
    scenes = read_scenes(settings.data, SPLITS[kind])
    reference = reference_moments(classifier, scenes)
    first = scenes.first(settings.num_images)
    steps = model.sampling_steps(settings)
    images = draw(folder, steps, scale, first.captions, NOISE_SEED)
    row = measure(classifier, images, first, reference)
    np.save(settings.workdir / f"{key.replace(' ', '_')}.npy", images)
    keep(settings, key, row)


def row_key(settings: Settings, model: Model, kind: str, scale: float) -> str:
    """The name of a measurement."""
    steps = model.sampling_steps(settings)
    return f"{model.name} {kind} {scale:g} {steps} {settings.num_images}"


def keep(settings: Settings, key: str, row: Row) -> None:
    """Into a file of its own: several processes may measure."""
    path = settings.workdir / "rows" / f"{key.replace(' ', '_')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"key": key, **row}, indent=2) + "\n")
    print(f"{key}: {text.row_text(row)}", flush=True)


def rows(settings: Settings) -> dict[str, Row]:
    """Everything that was measured."""
    found = [
        json.loads(path.read_text()) for path in settings.workdir.glob("rows/*.json")
    ]
    return {row.pop("key"): row for row in found}


def write(settings: Settings, document: Path) -> None:
    """The table and the judgement between the marks of the document; the picture."""
    found = rows(settings)
    table = text.tables(found, settings)
    begin, end = text.MARKS
    new = replace_between(document.read_text(), begin, end, table, document.name)
    picture = document.parent / "images" / "scenes.png"
    save_png(picture, text.picture(settings, read_scenes(settings.data, "held_out")))
    write_text(document, new)
    print(f"{table}\n\nwrote {document} and {picture}")
