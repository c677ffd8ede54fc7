"""Measure a run: sample it in each way asked for, and compare with the real data."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from multistep_cm.data.sources import all_examples, open_source
from multistep_cm.errors import UserError
from multistep_cm.evaluation.classifier import load_or_train
from multistep_cm.evaluation.features import Classifier
from multistep_cm.evaluation.fid import FidMeter
from multistep_cm.evaluation.measure import Reference, make_reference, measure
from multistep_cm.generation import (
    SamplingOptions,
    balanced_labels,
    compile_generator,
    measured_x_variance,
)
from multistep_cm.reporting.progress import progress
from multistep_cm.sharding.distributed import is_main_process, say
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training.methods import METHODS
from multistep_cm.training.teacher import load_ema
from multistep_cm.workdir import override_config, read_config, write_text

EVALUATION_NAME = "evaluation.json"

Row = dict[str, Any]
"""One line of the results: method, steps, network_calls, frechet_distance, .."""


def load_reference(
    config: ConfigDict, classifier_path: Path
) -> tuple[Classifier | None, Reference]:
    """The classifier, trained on the real data once and cached, and the data's numbers.

    The reference is the training split: what the model was trained to draw. Without
    classes there is no classifier, and only pixels are compared.
    """
    images, labels = all_examples(open_source(config.data, config.data.train_split))
    if not config.data.num_classes:
        return None, make_reference(None, images)
    held_out = all_examples(open_source(config.data, config.data.evaluation_split))
    classifier = load_or_train(
        classifier_path,
        images,
        labels,
        *held_out,
        num_classes=config.data.num_classes,
        seed=0,
    )
    say(f"classifier: {classifier.test_accuracy:.1%} correct on held-out images")
    return classifier, make_reference(classifier, images, labels)


def evaluate_run(
    workdir: Path,
    ways: Sequence[SamplingOptions],
    classifier: Classifier | None,
    reference: Reference | None,
    num_images: int,
    seed: int,
    overrides: Mapping[str, str] = MappingProxyType({}),
    show: Callable[[Row, np.ndarray], None] = lambda row, images: None,
    fid: FidMeter | None = None,
) -> list[Row]:
    """Sample the run's averaged weights in each way and measure; one row for each.

    `show` is called with each row and its images, uint8 [num_images, ...]; image i has
    class i modulo the number of classes and, for one seed, the same noise in every run.

    `overrides` are config keys that say how and where it is sampled, such as the mesh.
    Rows are also kept in `workdir/evaluation.json`, where they replace rows of the same
    method and number of steps; what those measured of the same images is kept.

    Without `reference` what it serves for is not measured; `fid` is measured if given.
    """
    config = override_config(read_config(workdir), overrides)
    _check_number(num_images, reference)
    mesh = make_mesh(config.mesh)
    step, params = load_ema(workdir, config, mesh)
    rows = []
    for way in ways:
        row = _row_name(config, way)
        batch_size = min(config.evaluation.batch_size, num_images)
        x_variance = measured_x_variance(config, way, params)
        generator = compile_generator(config, way, mesh, batch_size, x_variance)
        labels = balanced_labels(num_images, config.data.num_classes)
        name = f"{row['method']} {way.num_steps}"
        with progress(f"sampling {name}", num_images, enabled=is_main_process()) as bar:
            start = time.perf_counter()
            images = generator(
                params,
                labels,
                seed,
                bar.images_to,
            )
            seconds = time.perf_counter() - start
        known = labels if config.data.num_classes else None
        row |= {"num_images": num_images}
        if reference is not None:
            row |= measure(classifier, reference, images, known)
        if fid is not None:
            shown = is_main_process()
            with progress(f"FID of {name}", num_images, enabled=shown) as bar:
                row |= fid.measure(images, bar.images_to)
        row |= {
            "images_per_second": num_images / seconds,
            "train_step": step,
            "seed": seed,
            "guidance_scale": way.guidance_scale,
            "x_variance": way.x_variance,
        }
        rows.append(row)
        show(row, images)
    if is_main_process():
        _keep(workdir / EVALUATION_NAME, rows, classifier, reference)
    return rows


def _check_number(num_images: int, reference: Reference | None) -> None:
    """Raise UserError, before images are drawn, when there will be too few."""
    if reference is None:
        return
    moments = [reference.pixels, reference.features]
    dimension = max(len(m.mean) for m in moments if m is not None)
    if num_images <= dimension:
        raise UserError(
            f"num_images is {num_images}, expected more than {dimension}, the number "
            "of features that a Fréchet distance compares"
        )


def _row_name(config: ConfigDict, way: SamplingOptions) -> Row:
    student = METHODS[config.method].is_student
    return {
        "method": config.method if student else f"teacher_{way.method}",
        "steps": way.num_steps,
        "network_calls": way.network_calls,
    }


def _identity(row: Row) -> tuple[Any, ...]:
    """What makes two rows the same way to sample."""
    keys = ("method", "steps", "guidance_scale", "x_variance")
    return tuple(row.get(key) for key in keys)


def _images_of(row: Row) -> tuple[Any, ...]:
    """What makes the images of two rows the same."""
    return (*_identity(row), *map(row.get, ("train_step", "seed", "num_images")))


def _keep(
    path: Path,
    rows: Sequence[Row],
    classifier: Classifier | None,
    reference: Reference | None,
) -> None:
    old: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    new = {_identity(row) for row in rows}
    others = [row for row in old.get("rows", []) if _identity(row) not in new]
    measured = {_images_of(row): row for row in old.get("rows", [])}
    floor, accuracy = old.get("floor"), old.get("classifier_accuracy")
    if reference is not None:
        floor = reference.floor
        accuracy = classifier.test_accuracy if classifier else None
    results = {
        "floor": floor,
        "classifier_accuracy": accuracy,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "rows": [*others, *(measured.get(_images_of(row), {}) | row for row in rows)],
    }
    write_text(path, json.dumps(results, indent=2) + "\n")
