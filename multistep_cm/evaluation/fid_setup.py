"""The FID meter of a run: its network on the mesh, and its reference from data or file.

What the numbers mean is written in `fid.py`.
"""

import dataclasses
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from multistep_cm.data.sources import Source, open_source
from multistep_cm.errors import UserError
from multistep_cm.evaluation import inception, inception_weights
from multistep_cm.evaluation.activations import Extractor, Read
from multistep_cm.evaluation.fid import (
    FidMeter,
    FidReference,
    check_count,
    kept_indices,
    measure_reference,
    read_reference,
    with_features,
    write_reference,
)
from multistep_cm.reporting.progress import progress
from multistep_cm.sharding.agreement import check_same, together
from multistep_cm.sharding.distributed import is_main_process, say
from multistep_cm.sharding.mesh import make_mesh

_CHUNK = 16


@dataclasses.dataclass(frozen=True)
class FidOptions:
    """What is needed before anything is computed.

    Attributes:
      params: of the FID network.
      reference: read from a file; None measures the training split.
      write_to: where to keep the measured reference; None keeps it nowhere.
    """

    params: Any
    reference: FidReference | None
    write_to: Path | None


def fid_options(
    config: ConfigDict,
    num_images: int,
    weights: Path | None,
    reference: Path | None,
    write_to: Path | None,
) -> FidOptions:
    """Reads and checks the files; touches no device.

    Raises UserError for what `load_weights` and `read_reference` refuse, without a
    weight file, and for too few images.
    """
    if weights is None:
        raise UserError(
            "FID is defined by the weights of one network, which are not given: "
            f"{inception_weights.WHERE} and say --inception_weights=FILE"
        )
    check_count(num_images, "samples", ": raise --num_images")
    if config.data.channels not in (1, 3):
        raise UserError(
            f"data.channels is {config.data.channels}, but FID needs images in grey or "
            "in colour"
        )
    if reference is not None and write_to is not None:
        raise UserError(
            f"--write_reference={write_to} would only copy --reference={reference}: "
            "give one of them"
        )
    if write_to is not None and write_to.suffix != ".npz":
        raise UserError(f"--write_reference is {write_to}, expected FILE.npz")
    read = None
    if reference is not None:
        read = read_reference(reference, config.data.image_size)
    else:
        check_count(
            len(_training_split(config)), "real images", ": give a --reference=FILE.npz"
        )
    return FidOptions(inception_weights.load_weights(weights), read, write_to)


class FidSource:
    """The meter of a run, made when it is first needed: real images cost minutes.

    Attributes:
      facts: what a row says of how its FID was measured.
    """

    def __init__(self, config: ConfigDict, options: FidOptions) -> None:
        """Opens the training split, where that is the reference, but reads no image."""
        self._config, self._options = config, options
        if options.reference is not None:
            source, count = options.reference.source, options.reference.count
        else:
            split = _training_split(config)
            source, count = _source_name(split), len(split)
        self.facts: dict[str, Any] = {
            "fid_reference": source,
            "fid_reference_images": count,
            "inception_sha256": inception_weights.SHA256,
        }

    @functools.cached_property
    def meter(self) -> FidMeter:
        """Every process must ask for it."""
        return make_meter(self._config, self._options)


def make_meter(config: ConfigDict, options: FidOptions) -> FidMeter:
    """The meter; every process must call it. Writes the reference if that was asked."""
    mesh = make_mesh(config.mesh)
    extractor = Extractor(inception.taps, options.params, mesh)
    enabled, reference = is_main_process(), options.reference
    if reference is None:
        with open_read(config) as (source, read):
            name, count = _source_name(source), len(source)
            with progress("real images", count, enabled=enabled) as bar:
                reference = measure_reference(
                    extractor, read, count, name, bar.images_to
                )
            if options.write_to is not None:
                images = together(lambda: read(kept_indices(count)))
                _write(options.write_to, reference, images)
    else:
        check_same({"--reference": reference.source}, "give all the same file")
        number = 0 if reference.images is None else len(reference.images)
        with progress("real images", number, enabled=enabled and number > 0) as bar:
            reference = with_features(extractor, reference, bar.images_to)
    return FidMeter(extractor, reference, inception_weights.SHA256)


@contextmanager
def open_read(config: ConfigDict) -> Iterator[tuple[Source, Read]]:
    """The training split, and its images by index, decoded by several threads."""
    source = _training_split(config)

    def images(indices: np.ndarray) -> np.ndarray:
        return source.read(indices)["image"]

    with ThreadPoolExecutor(config.data.num_threads) as executor:

        def read(indices: np.ndarray) -> np.ndarray:
            pieces = np.array_split(indices, max(1, len(indices) // _CHUNK))
            return np.concatenate(list(executor.map(images, pieces)))

        yield source, read


def _training_split(config: ConfigDict) -> Source:
    data = config.data.copy_and_resolve_references()
    data.cache = False  # it is read once
    return open_source(data, data.train_split)


def _source_name(source: Source) -> str:
    return f"{source.name} {source.split}"


def _write(path: Path, reference: FidReference, images: np.ndarray) -> None:
    whole = dataclasses.replace(reference, images=images)
    if is_main_process():
        write_reference(path, whole)
    say(f"wrote the reference of {reference.count} real images to {path}")
