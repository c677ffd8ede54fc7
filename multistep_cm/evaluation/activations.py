"""One pass of images through the feature network, spread over a mesh.

Every device sees its part of each batch, in float32. What it finds is added up in
float64 on its own host, and the sums of the hosts are merged at the end, so no host
ever holds the features of all images. Features are kept only of the images named.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from multistep_cm.evaluation import inception_score
from multistep_cm.evaluation.frechet import Moments, RunningMoments
from multistep_cm.evaluation.inception_score import ScoreSums
from multistep_cm.sharding.agreement import has_others, wait_for_all
from multistep_cm.sharding.mesh import (
    batch_sharding,
    data_parallel_size,
    replicate,
    replicated,
)

T = TypeVar("T")

IMAGES_PER_PART = 32
STATISTICS = ("2048", "spatial", "logits_unbiased")
"""The taps that are summed up."""

Taps = Callable[[Any, jax.Array], dict[str, jax.Array]]
Read = Callable[[np.ndarray], np.ndarray]
"""From indices [n] to images uint8 [n, height, width, channels]."""


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A feature network on a mesh.

    Attributes:
      taps: `(params, images uint8 [batch, ..]) -> {"2048", "spatial",
        "logits_unbiased"}`, each [batch, size]; see `inception.taps`.
      params: its parameters, alike in every process.
      mesh: batches are split over it.
    """

    taps: Taps
    params: Any
    mesh: Mesh


@dataclasses.dataclass(frozen=True)
class Activations:
    """What a pass over images leaves, alike in every process.

    Attributes:
      pool: moments of the features of the Fréchet distance.
      spatial: moments of the spatial features.
      inception_score: of the images in their order.
      kept: float32 [number kept, size], features of the images to keep, in order.
    """

    pool: Moments
    spatial: Moments
    inception_score: float
    kept: np.ndarray


def activations(
    extractor: Extractor,
    read: Read,
    count: int,
    keep: np.ndarray,
    report: Callable[[int], None] = lambda done: None,
) -> Activations:
    """Passes images 0 to count - 1 through the network, each once.

    Args:
      extractor: the network; every process must call this, with equal arguments.
      read: is asked, in each process, for the images of its own devices.
      count: number of images, at least 1.
      keep: sorted indices of the images whose features are wanted.
      report: called with the number of images done after each batch.
    """
    parts = data_parallel_size(extractor.mesh)
    size = min(IMAGES_PER_PART, -(-count // parts)) * parts
    shape = (size, *read(np.array([0])).shape[1:])
    params = replicate(extractor.params, extractor.mesh)
    program = _compile(extractor, params, shape)
    pixels = jax.ShapeDtypeStruct(shape, jnp.uint8)
    outlines = jax.eval_shape(extractor.taps, params, pixels)
    widths = {name: outlines[name].shape[1] for name in STATISTICS}
    pool, spatial = RunningMoments(), RunningMoments()
    scores = ScoreSums(count, widths["logits_unbiased"], inception_score.SPLIT)
    kept = [np.zeros((0, widths["2048"]), np.float32)]
    images = _batches(read, extractor.mesh, count, shape)
    for start, outputs in _one_ahead(
        (i, program(params, batch)) for i, batch in images
    ):
        own = {name: _own_rows(outputs[name], start, count) for name in STATISTICS}
        pool.add(own["2048"][1])
        spatial.add(own["spatial"][1])
        scores.add(*own["logits_unbiased"])
        wanted = keep[(keep >= start) & (keep < start + size)] - start
        if len(wanted):
            kept.append(np.asarray(outputs["whole"])[wanted])
        report(min(start + size, count))
    return Activations(
        pool=_merge(pool.moments(widths["2048"])),
        spatial=_merge(spatial.moments(widths["spatial"])),
        inception_score=_add(scores).score(),
        kept=np.concatenate(kept),
    )


def _compile(
    extractor: Extractor, params: Any, shape: tuple[int, ...]
) -> jax.stages.Compiled:
    split, whole = batch_sharding(extractor.mesh), replicated(extractor.mesh)

    def compute(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        found = extractor.taps(params, images)
        wanted = {name: found[name] for name in STATISTICS}
        # A second copy, whole in every process, of which rows are kept.
        return wanted | {"whole": found["2048"]}

    places = dict.fromkeys(STATISTICS, split) | {"whole": whole}
    jitted = jax.jit(compute, in_shardings=(whole, split), out_shardings=places)
    program = jitted.lower(params, jax.ShapeDtypeStruct(shape, jnp.uint8)).compile()
    wait_for_all("compiled the feature network")
    return program


def _batches(
    read: Read, mesh: Mesh, count: int, shape: tuple[int, ...]
) -> Iterator[tuple[int, jax.Array]]:
    """First index and images; the last batch is filled up with the last image.

    Each process reads what its own devices are to see, once.
    """
    split = batch_sharding(mesh)
    own = {
        where[0].indices(shape[0])[:2]
        for where in split.addressable_devices_indices_map(shape).values()
        if where is not None
    }
    rows = np.concatenate([np.arange(*bounds) for bounds in sorted(own)])
    for start in range(0, count, shape[0]):
        # All at once, so that a reader with threads has enough to do.
        images = read(np.minimum(start + rows, count - 1))

        def part(where: Any, images: np.ndarray = images) -> np.ndarray:
            first, last, _ = where[0].indices(shape[0])
            begin = np.searchsorted(rows, first)
            return images[begin : begin + last - first]

        yield start, jax.make_array_from_callback(shape, split, part)


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same, each after the next one was asked for, so that a device can compute."""
    previous: list[T] = []
    for item in items:
        yield from previous
        previous = [item]
    yield from previous


def _own_rows(
    array: jax.Array, start: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and rows that this process is to count: no copies, no filling."""
    own = [s for s in array.addressable_shards if s.replica_id == 0]
    firsts = [start + (shard.index[0].start or 0) for shard in own]
    rows = [np.asarray(shard.data) for shard in own]
    each = [f + np.arange(len(r)) for f, r in zip(firsts, rows, strict=True)]
    indices = np.concatenate([np.zeros(0, np.int64), *each])
    values = np.concatenate([np.zeros((0, array.shape[1]), array.dtype), *rows])
    return indices[indices < count], values[indices < count]


def _merge(own: Moments) -> Moments:
    """Moments of the images of all processes."""
    if not has_others():
        return own
    size = len(own.mean)
    mine = np.concatenate([[own.count], own.mean, own.scatter.reshape(-1)])
    merged = RunningMoments()
    for flat in _each_process(mine):
        mean, scatter = flat[1 : size + 1], flat[size + 1 :].reshape(size, size)
        merged.merge(Moments(int(flat[0]), mean, scatter))
    return merged.moments(size)


def _add(own: ScoreSums) -> ScoreSums:
    """The sums of all processes, in place."""
    for name in ("counts", "negentropies", "probabilities"):
        mine = getattr(own, name)
        total = np.zeros_like(mine)
        for flat in _each_process(mine.reshape(-1)):
            total += flat.reshape(mine.shape)
        setattr(own, name, total)
    return own


def _each_process(values: np.ndarray) -> Iterator[np.ndarray]:
    """The float64 [n] of each process in turn, bit for bit; one at a time in memory."""
    if not has_others():
        yield values
        return
    wait_for_all("merged what the processes found")
    words = np.ascontiguousarray(values, np.float64).view(np.uint32)
    for process in range(jax.process_count()):
        is_source = jax.process_index() == process
        sent: Any = multihost_utils.broadcast_one_to_all(words, is_source)
        yield np.ascontiguousarray(sent).view(np.float64)
