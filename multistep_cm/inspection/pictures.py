"""Images of a run's averaged weights for a report: the same noise for every model."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from multistep_cm.data.sources import open_source
from multistep_cm.diffusion.guidance import ALWAYS
from multistep_cm.errors import UserError
from multistep_cm.generation import (
    SamplingOptions,
    balanced_labels,
    compile_generator,
    default_wanted,
    measured_x_variance,
    sampling_options,
)
from multistep_cm.inspection.runs import Workdir
from multistep_cm.inspection.trajectories import record, trajectory_pictures
from multistep_cm.reporting.content import Pictures, Strip
from multistep_cm.reporting.curves import TEACHER, row_name
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training.teacher import load_ema

TRAJECTORIES = 3
"""Images of each run whose way from noise is shown."""

REAL_EXAMPLES = 2000
"""Training images among which those of the wanted classes are looked for."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The pictures of one run: samples, each way a strip, and trajectories."""

    samples: Sequence[Strip]
    trajectories: Pictures


def draw(
    workdir: Workdir,
    num_images: int,
    seed: int,
    with_samples: bool = True,
    report: Callable[[], None] = lambda: None,
) -> Drawn:
    """Sample a run in every way in which it was measured, and follow its own way.

    `report` is called after each way.
    Raises UserError when there is no good checkpoint, or not the devices of its mesh.
    """
    config = workdir.config
    mesh = make_mesh(config.mesh)
    _, params = load_ema(workdir.path, config, mesh)
    wanted = default_wanted(config, num_images)
    strips = []
    for way in measured_ways(workdir) if with_samples else []:
        x_variance = measured_x_variance(config, way, params)
        generator = compile_generator(config, way, mesh, num_images, x_variance)
        images = generator(params, wanted, seed)
        strips.append(Strip(f"{workdir.run.name}: {_way_name(workdir, way)}", images))
        report()
    wanted = jax.tree.map(lambda leaf: leaf[:TRAJECTORIES], wanted)
    own = sampling_options(config)
    calls, z_0 = record(config, own, params, wanted, seed, mesh)
    names = image_names(config, balanced_labels(num_images, config.data.num_classes))
    return Drawn(strips, trajectory_pictures(calls, z_0, names[:TRAJECTORIES], config))


def measured_ways(workdir: Workdir) -> list[SamplingOptions]:
    """The ways of its rows, most steps first; without rows its own way."""
    ways = []
    for row in workdir.measured.rows:
        method = str(row.get("method", "")).removeprefix(TEACHER)
        try:
            way = sampling_options(
                workdir.config,
                None if workdir.is_student else method,
                row.get("steps"),
                row.get("guidance_scale"),
                row.get("x_variance"),
            )
        except UserError:
            continue  # measured when the run was another, or by another version
        if "guidance_interval" in row:
            low, high = row["guidance_interval"] or ALWAYS
            way = dataclasses.replace(way, guidance_interval=(low, high))
        ways.append(way)
    ways.sort(key=lambda way: (way.method != "ddim", way.method, -way.num_steps))
    return list(dict.fromkeys(ways)) or [sampling_options(workdir.config)]


def image_names(config: ConfigDict, labels: Sequence[int] | np.ndarray) -> list[str]:
    """What a column of images is called: its class, or its number."""
    if config.data.num_classes:
        return [f"class {label}" for label in labels]
    return [f"image {index + 1}" for index in range(len(labels))]


def real_strip(config: ConfigDict, num_images: int) -> Strip | None:
    """Training images of the classes that are drawn; None when the data is not here."""
    try:
        source = open_source(config.data, config.data.train_split)
        examples = source.read(np.arange(min(REAL_EXAMPLES, len(source))))
    except UserError:
        return None
    wanted = balanced_labels(num_images, config.data.num_classes)
    if not config.data.num_classes:
        return Strip("real images", examples["image"][:num_images])
    indices = []
    for index, label in enumerate(wanted):
        found = np.flatnonzero(examples["label"] == label)
        turn = index // config.data.num_classes
        if turn >= len(found):
            return None
        indices.append(found[turn])
    return Strip("real images", examples["image"][indices])


def _way_name(workdir: Workdir, way: SamplingOptions) -> str:
    name = row_name(
        {
            "method": workdir.config.method if workdir.is_student else way.method,
            "guidance_scale": way.guidance_scale,
            "guidance_interval": None
            if way.guidance_interval == ALWAYS
            else way.guidance_interval,
            "x_variance": way.x_variance,
        }
    )
    return f"{name}, {way.num_steps} step{'s' if way.num_steps > 1 else ''}"
