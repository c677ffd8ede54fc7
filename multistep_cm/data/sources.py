"""Any image dataset as a random-access source of uint8 images and labels."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from ml_collections import ConfigDict

from multistep_cm.data import transforms
from multistep_cm.data.bad_records import TolerantSource
from multistep_cm.errors import UserError
from multistep_cm.sharding.distributed import say

Batch = dict[str, np.ndarray]

FOLDER = "folder"
"""The `data.name` of image files in `data.directory`; any other is one of TFDS."""

# Above this a cache is refused: the machine has other uses for its memory.
MAX_CACHE_BYTES = 2 * 1024**3
CACHE_CHUNK = 256


class Source(Protocol):
    """Examples by index, in a fixed order: images, labels and perhaps captions."""

    @property
    def name(self) -> str:
        """The dataset's name in the config."""

    @property
    def split(self) -> str:
        """The split's name in the config."""

    @property
    def fingerprint(self) -> str:
        """What tells it from others of that name, split and length; empty: nothing."""

    @property
    def num_bad(self) -> int:
        """Records that were met and passed over, because they cannot be decoded."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch:
        """One example: `image` uint8 [S, S, C], `label` int32 [], and captions."""

    def read(self, indices: np.ndarray) -> Batch:
        """Many: `image` uint8 [N, S, S, C], `label` int32 [N] (0 without labels).

        Unless `data.text` is none, also `text` and `text_mask`, see `captions.py`.

        Raises UserError naming the example that cannot be read: BadRecordError when
        its bytes are there and cannot be decoded.
        """


@dataclass(frozen=True)
class ArraySource:
    """Examples in memory: `images` uint8 [N, S, S, C], `labels` int32 [N].

    `captions` holds `text` and `text_mask`, [N, ..], or nothing.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    fingerprint: str = ""
    num_bad: int = 0
    captions: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        captions = {key: value[index] for key, value in self.captions.items()}
        return {"image": self.images[index], "label": self.labels[index], **captions}

    def read(self, indices: np.ndarray) -> Batch:
        captions = {key: value[indices] for key, value in self.captions.items()}
        image, label = self.images[indices], self.labels[indices]
        return {"image": image, "label": label, **captions}


def open_source(config: ConfigDict, split: str) -> Source:
    """One split of the dataset of `data.*`, in memory if `data.cache` says so.

    `config` is the `data` part of a config. Raises UserError as `check_data` does, and
    for an example that cannot be decoded when all are decoded at once.
    """
    (source,) = _open_uncached(config, [split], warn=_tell)
    if not config.cache:
        return source
    _check_cache(config, source)
    everything = read_all(source, config.num_threads)
    return ArraySource(
        config.name,
        split,
        everything.pop("image"),
        everything.pop("label"),
        source.fingerprint,
        source.num_bad,
        everything,
    )


def _tell(line: str) -> None:
    """Also from processes that say nothing else: each reads records of its own."""
    print(line, flush=True)


def check_data(config: ConfigDict) -> None:
    """Raise UserError for what is wrong with `data.*`, and decode one example a split.

    Of a dataset of TFDS that is: an unknown name or split; one that is not prepared, or
    in a format without random access; image or label keys that do not exist or hold
    something else. Of a folder: see `find_images` in `folders.py`. Of both: channels or
    labels that do not fit; a cache that would be too large.
    """
    splits = dict.fromkeys((config.train_split, config.evaluation_split))
    for source in _open_uncached(config, list(splits), say):
        if config.cache:
            _check_cache(config, source)
        source.read(np.array([0]))


def all_examples(source: Source, num_threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """All images, uint8 [N, S, S, C], and labels, int32 [N], in the source's order."""
    if isinstance(source, ArraySource):
        return source.images, source.labels
    everything = read_all(source, num_threads)
    return everything["image"], everything["label"]


def read_all(source: Source, num_threads: int = 1) -> Batch:
    """What `source.read` gives for all examples."""
    starts = range(0, len(source), CACHE_CHUNK)
    chunks = [np.arange(s, min(s + CACHE_CHUNK, len(source))) for s in starts]
    executor = ThreadPoolExecutor(num_threads)
    try:
        parts = list(executor.map(source.read, chunks))
    finally:
        # After an error the chunks that have not begun are not worth waiting for.
        executor.shutdown(cancel_futures=True)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _open_uncached(
    config: ConfigDict,
    splits: Sequence[str],
    report: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> Sequence[Source]:
    """The splits, after every check that needs no example.

    `report` is told what is there, `warn` of each bad record that is passed over.
    """
    if config.channels not in transforms.MODES:
        raise UserError(
            f"config key data.channels is {config.channels}, expected 1 (grayscale) or "
            "3 (RGB)"
        )
    if config.resize not in transforms.RESAMPLING:
        expected = ", ".join(transforms.RESAMPLING)
        raise UserError(
            f"config key data.resize is {config.resize!r}, expected: {expected}"
        )
    # Imported here: they build on this module, and TFDS takes seconds.
    if config.name == FOLDER:
        from multistep_cm.data.folder_source import open_folder

        sources: Sequence[Source] = open_folder(config, splits, report)
    else:
        from multistep_cm.data.tfds_source import open_tfds

        sources = [open_tfds(config, split, warn) for split in splits]
    fraction = config.bad_record_fraction
    if not fraction:
        return sources
    return [TolerantSource(source, fraction, warn) for source in sources]


def _check_cache(config: ConfigDict, source: Source) -> None:
    size = len(source) * config.image_size**2 * config.channels
    if config.text == "precomputed":
        size += 2 * len(source) * config.text_length * config.text_width
    if size > MAX_CACHE_BYTES:
        raise UserError(
            f"config key data.cache is True, but {len(source)} examples of split "
            f"{source.split!r} need {size / 1024**3:.1f} GiB of memory, more than "
            f"{MAX_CACHE_BYTES / 1024**3:g} GiB: set data.cache=False"
        )
