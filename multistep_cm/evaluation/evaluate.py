"""Measure a run: sample it in each way asked for, and compare with the real data."""

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm.checkpoints import Checkpoints
from multistep_cm.data.sources import all_examples, open_source
from multistep_cm.errors import UserError
from multistep_cm.evaluation.classifier import load_or_train
from multistep_cm.evaluation.features import Classifier
from multistep_cm.evaluation.fid import FidMeter
from multistep_cm.evaluation.fid_setup import FidSource
from multistep_cm.evaluation.measure import Reference, make_reference, measure
from multistep_cm.evaluation.results import (
    Row,
    find_done,
    keep_row,
    read_results,
    row_name,
)
from multistep_cm.generation import (
    SamplingOptions,
    balanced_labels,
    compile_generator,
    measured_x_variance,
)
from multistep_cm.losses.signature import Params
from multistep_cm.provenance import git_commit
from multistep_cm.reporting.progress import progress
from multistep_cm.sharding.agreement import gather_text, together
from multistep_cm.sharding.distributed import is_main_process, say
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training.teacher import load_ema
from multistep_cm.workdir import override_config, read_config


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
    fid: FidSource | None = None,
    resume: bool = False,
) -> list[Row]:
    """Sample the run's averaged weights in each way and measure; one row for each.

    `show` is called with each row and its images, uint8 [num_images, ...]; image i has
    class i modulo the number of classes and, for one seed, the same noise in every run.

    `overrides` are config keys that say how and where it is sampled, such as the mesh.
    Each row is kept in `workdir/evaluation.json` as soon as it is measured; there it
    replaces the row of the same way to sample, and what that one measured of the same
    images is kept. `resume` takes rows from there that were measured with the same
    settings of the same weights: they are not measured again, nor shown.

    Without `reference` what it serves for is not measured; `fid` is measured if given.
    """
    config = override_config(read_config(workdir), overrides)
    _check_number(num_images, reference)
    mesh = make_mesh(config.mesh)
    measured_with: Row = dict(fid.facts) if fid is not None else {}
    if reference is not None:
        measured_with |= {"reference_images": reference.pixels.count}
        measured_with |= {
            "classifier_sha256": classifier.sha256 if classifier else None
        }
    settings = [
        row_name(config, way) | {"seed": seed, "num_images": num_images} | measured_with
        for way in ways
    ]
    done = _find_done(workdir, settings if resume else [], _weights(workdir))
    if resume and None not in done:
        return [row for row in done if row is not None]
    step, params = load_ema(workdir, config, mesh)
    weights = _weights(workdir, step)
    done = _find_done(workdir, settings if resume else [], weights)
    meter = None if fid is None else fid.meter
    facts, commit = _facts(classifier, reference), git_commit()
    rows: list[Row] = []
    for i, (way, setting) in enumerate(zip(ways, settings, strict=True)):
        found = done[i] if resume else None
        if found is not None:
            rows.append(found)
            continue
        name = f"{workdir.name}: {setting['method']} {way.num_steps}"
        images, rate = _sample(config, way, mesh, params, num_images, seed, name)
        row = setting | _measure(images, config, classifier, reference, meter, name)
        row |= {"images_per_second": rate, **weights, "commit": commit}
        rows.append(together(functools.partial(_keep, workdir, config, row, facts)))
        show(rows[-1], images)
    return rows


def _sample(
    config: ConfigDict,
    way: SamplingOptions,
    mesh: Mesh,
    params: Params,
    num_images: int,
    seed: int,
    name: str,
) -> tuple[np.ndarray, float]:
    """Images, and how many a second; compiling does not count."""
    batch_size = min(config.evaluation.batch_size, num_images)
    x_variance = measured_x_variance(config, way, params)
    generator = compile_generator(config, way, mesh, batch_size, x_variance)
    labels = balanced_labels(num_images, config.data.num_classes)
    with progress(f"sampling {name}", num_images, enabled=is_main_process()) as bar:
        start = time.perf_counter()
        images = generator(params, labels, seed, bar.images_to)
        return images, num_images / (time.perf_counter() - start)


def _measure(
    images: np.ndarray,
    config: ConfigDict,
    classifier: Classifier | None,
    reference: Reference | None,
    meter: FidMeter | None,
    name: str,
) -> Row:
    row: Row = {}
    if reference is not None:
        classes = config.data.num_classes
        known = balanced_labels(len(images), classes) if classes else None
        row |= measure(classifier, reference, images, known)
    if meter is not None:
        shown = is_main_process()
        with progress(f"FID of {name}", len(images), enabled=shown) as bar:
            row |= meter.measure(images, bar.images_to)
    return row


def _find_done(
    workdir: Path, settings: Sequence[Row], weights: Row
) -> list[Row | None]:
    """What process 0 finds in the file for each setting and these weights."""
    rows = together(lambda: read_results(workdir)["rows"] if is_main_process() else [])
    is_known = weights["weights_sha256"] is not None
    own = [find_done(rows, row | weights) if is_known else None for row in settings]
    found: list[Row | None] = json.loads(gather_text(json.dumps(own))[0])
    return found


def _keep(workdir: Path, config: ConfigDict, row: Row, facts: Row) -> Row:
    return keep_row(workdir, config, row, facts) if is_main_process() else row


def _weights(workdir: Path, step: int | None = None) -> Row:
    """What a row says of the averaged weights of a step, by default the newest.

    No array is read: the newest may be damaged, which a restore would find out.
    """
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.latest_step() if step is None else step
        sha256 = None if step is None else checkpoints.tree_sha256(step, "ema")
    return {"train_step": step, "weights_sha256": sha256}


def _facts(classifier: Classifier | None, reference: Reference | None) -> Row:
    """What the file says beside its rows of the data; nothing that was not measured."""
    if reference is None:
        return {}
    accuracy = None if classifier is None else classifier.test_accuracy
    return {"floor": reference.floor, "classifier_accuracy": accuracy}


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
