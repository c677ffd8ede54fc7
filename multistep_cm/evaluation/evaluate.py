"""Measure a run: sample it in each way asked for, and compare with the real data."""

import dataclasses
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
    Generator,
    SamplingOptions,
    balanced_labels,
    compile_generator,
    default_wanted,
    measured_x_variance,
)
from multistep_cm.losses.signature import Params
from multistep_cm.provenance import git_commit
from multistep_cm.reporting.progress import progress
from multistep_cm.sharding.agreement import gather_text, main_first, together
from multistep_cm.sharding.distributed import is_main_process, say
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training.teacher import average_name, load_ema
from multistep_cm.workdir import override_config, read_config


def load_reference(
    config: ConfigDict, classifier_path: Path, mesh: Mesh | None = None
) -> tuple[Classifier | None, Reference]:
    """The classifier, trained on the real data once and cached, and the data's numbers.

    The reference is the training split: what the model was trained to draw; its
    features are computed over the mesh. Without classes there is no classifier, and
    only pixels are compared. Every process of the mesh must call it; the first one
    trains the classifier and writes the file that others read.
    """
    classifier, images, labels = main_first(
        lambda: _load_classifier(config, classifier_path)
    )
    if classifier is None:
        return None, make_reference(None, images)
    say(f"classifier: {classifier.test_accuracy:.1%} correct on held-out images")
    return classifier, make_reference(classifier, images, labels, mesh=mesh)


def _load_classifier(
    config: ConfigDict, path: Path
) -> tuple[Classifier | None, np.ndarray, np.ndarray]:
    """The classifier, None without classes; images and labels of the training split."""
    images, labels = all_examples(open_source(config.data, config.data.train_split))
    if not config.data.num_classes:
        return None, images, labels
    held_out = all_examples(open_source(config.data, config.data.evaluation_split))
    classifier = load_or_train(
        path,
        images,
        labels,
        *held_out,
        num_classes=config.data.num_classes,
        seed=0,
    )
    return classifier, images, labels


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
    ema_decays: Sequence[float | None] = (None,),
) -> list[Row]:
    """Sample the run's averaged weights in each way and measure; one row for each.

    `show` is called with each row and its images, uint8 [num_images, ...]; image i has
    class i modulo the number of classes and, for one seed, the same noise in every run.

    `overrides` are config keys that say how and where it is sampled, such as the mesh.
    Each row is kept in `workdir/evaluation.json` as soon as it is measured; there it
    replaces the row of the same way to sample, and what that one measured of the same
    images is kept. `resume` takes rows from there that were measured with the same
    settings of the same weights: they are not measured again, nor shown.

    `ema_decays` are the averages to measure, None being the main one; the rows of one
    way stand together, in this order. Raises UserError for one that is not tracked.

    Without `reference` what it serves for is not measured; `fid` is measured if given.
    """
    config = override_config(read_config(workdir), overrides)
    _check_number(num_images, reference)
    names = {decay: average_name(config, decay) for decay in ema_decays}
    measured_with: Row = dict(fid.facts) if fid is not None else {}
    if reference is not None:
        measured_with |= {"reference_images": reference.pixels.count}
        measured_with |= {
            "classifier_sha256": classifier.sha256 if classifier else None
        }
    run = _Run(
        workdir,
        ways,
        _Sampler(config, make_mesh(config.mesh), num_images, seed),
        _Measures(classifier, reference, fid),
        {"seed": seed, "num_images": num_images, **measured_with},
        show,
        resume,
    )
    found = [_evaluate_average(run, decay, name) for decay, name in names.items()]
    return [row for rows in zip(*found, strict=True) for row in rows]


@dataclasses.dataclass(frozen=True)
class _Measures:
    """What images are measured with."""

    classifier: Classifier | None
    reference: Reference | None
    fid: FidSource | None


@dataclasses.dataclass(frozen=True)
class _Run:
    """What is measured of each average of a run; `settings` are in every row."""

    workdir: Path
    ways: Sequence[SamplingOptions]
    sampler: "_Sampler"
    measures: _Measures
    settings: Row
    show: Callable[[Row, np.ndarray], None]
    resume: bool


def _evaluate_average(run: _Run, decay: float | None, name: str) -> list[Row]:
    """The rows of one average, which a checkpoint calls `name`."""
    workdir, config = run.workdir, run.sampler.config
    settings = [row_name(config, way, decay) | run.settings for way in run.ways]
    wanted = settings if run.resume else []
    done = _find_done(workdir, wanted, _weights(workdir, name))
    if run.resume and None not in done:
        return [row for row in done if row is not None]
    step, params = load_ema(workdir, config, run.sampler.mesh, decay)
    weights, commit = _weights(workdir, name, step), git_commit()
    done = _find_done(workdir, wanted, weights)
    facts = _facts(run.measures)
    rows: list[Row] = []
    for i, (way, setting) in enumerate(zip(run.ways, settings, strict=True)):
        found = done[i] if run.resume else None
        if found is not None:
            rows.append(found)
            continue
        title = f"{workdir.name}: {setting['method']} {way.num_steps}"
        title += "" if decay is None else f", EMA {decay}"
        images, rate = run.sampler(params, way, title)
        row = setting | _measure(images, run.sampler, run.measures, title)
        row |= {"images_per_second": rate, **weights, "commit": commit}
        rows.append(together(functools.partial(_keep, workdir, config, row, facts)))
        run.show(rows[-1], images)
    return rows


class _Sampler:
    """Samples one run; a way is compiled once for all of its averages."""

    def __init__(
        self, config: ConfigDict, mesh: Mesh, num_images: int, seed: int
    ) -> None:
        self.config = config
        self.mesh = mesh
        self.labels = balanced_labels(num_images, config.data.num_classes)
        self.wanted = default_wanted(config, num_images)
        self.seed = seed
        self._generators: dict[SamplingOptions, Generator] = {}

    def __call__(
        self, params: Params, way: SamplingOptions, title: str
    ) -> tuple[np.ndarray, float]:
        """Images, and how many a second; compiling does not count."""
        generator, count = self._generator(params, way), len(self.labels)
        with progress(f"sampling {title}", count, enabled=is_main_process()) as bar:
            start = time.perf_counter()
            images = generator(params, self.wanted, self.seed, bar.images_to)
            return images, count / (time.perf_counter() - start)

    def _generator(self, params: Params, way: SamplingOptions) -> Generator:
        if way in self._generators:
            return self._generators[way]
        config = self.config
        batch_size = min(config.evaluation.batch_size, len(self.labels))
        x_variance = measured_x_variance(config, way, params)
        generator = compile_generator(config, way, self.mesh, batch_size, x_variance)
        if x_variance is None:  # otherwise it is of these weights alone
            self._generators[way] = generator
        return generator


def _measure(
    images: np.ndarray, sampler: _Sampler, measures: _Measures, title: str
) -> Row:
    row: Row = {}
    if measures.reference is not None:
        known = sampler.labels if sampler.config.data.num_classes else None
        row |= measure(
            measures.classifier, measures.reference, images, known, sampler.mesh
        )
    if measures.fid is not None:
        shown, meter = is_main_process(), measures.fid.meter
        with progress(f"FID of {title}", len(images), enabled=shown) as bar:
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


def _weights(workdir: Path, name: str, step: int | None = None) -> Row:
    """What a row says of an average of the weights at a step, by default the newest.

    No array is read: the newest may be damaged, which a restore would find out.
    """
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.latest_step() if step is None else step
        sha256 = None if step is None else checkpoints.tree_sha256(step, name)
    return {"train_step": step, "weights_sha256": sha256}


def _facts(measures: _Measures) -> Row:
    """What the file says beside its rows of the data; nothing that was not measured."""
    classifier, reference = measures.classifier, measures.reference
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
