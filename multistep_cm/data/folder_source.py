"""Image files in a folder as a source of examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from multistep_cm.data import transforms
from multistep_cm.data.bad_records import BadRecordError
from multistep_cm.data.folders import Images, find_images
from multistep_cm.data.sources import Batch
from multistep_cm.errors import UserError
from multistep_cm.files import read_bytes

LARGEST_IMAGE = 2**30
"""Bytes of a file; Pillow has bounds of its own for what is in it."""


@dataclass(frozen=True)
class FolderSource:
    """Reads and decodes files at every access; holds nothing but their names."""

    name: str
    split: str
    files: Images
    config: ConfigDict
    fingerprint: str
    num_bad: int = 0

    def __len__(self) -> int:
        return len(self.files.paths)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return {key: value[0] for key, value in self.read(np.array([index])).items()}

    def read(self, indices: np.ndarray) -> Batch:
        size, channels = self.config.image_size, self.config.channels
        images = np.empty((len(indices), size, size, channels), np.uint8)
        for row, index in enumerate(indices.tolist()):
            path = self.files.root / self.files.paths[index]
            name = f"image {str(path)!r} (example {index} of {self.split!r})"
            try:
                contents = read_bytes(path, LARGEST_IMAGE)
            except OSError as error:
                raise UserError(
                    f"image {str(path)!r} cannot be read: {error}; bring the file back "
                    "(a run that has begun cannot go on without it)"
                ) from error
            except ValueError as error:  # such as a pipe, which would be waited for
                raise BadRecordError(index, name, error) from error
            try:
                picture = transforms.as_seen(contents)
                images[row] = transforms.fit(
                    picture, size, channels, self.config.resize
                )
            # Decoders raise what they like on broken data, SyntaxError for one.
            except Exception as error:
                raise BadRecordError(index, name, error) from error
        return {"image": images, "label": self.files.labels[indices]}


def open_folder(
    config: ConfigDict, splits: Sequence[str], report: Callable[[str], None]
) -> list[FolderSource]:
    """These splits of `data.directory`; `report` is told in a line what it holds.

    Raises UserError as `find_images` does, and for a split that is not in the config.
    """
    folder = find_images(config)
    report(folder.describe())
    sources = []
    for split in splits:
        if split not in folder.splits:
            expected = ", ".join(map(repr, folder.splits))
            raise UserError(
                f"split {split!r} of folder {folder.directory} does not exist, "
                f"expected {expected}"
            )
        files = folder.splits[split]
        fingerprint = files.fingerprint()
        sources.append(FolderSource(config.name, split, files, config, fingerprint))
    return sources
