"""What is in the scenes of a split, and what their captions say of it."""

import dataclasses
from pathlib import Path

import numpy as np

from multistep_cm.data.builders.catalog import open_builder

DATASET = "digit_scenes/16x16"
SPLITS = {"seen": "test", "held-out": "held_out"}
"""What a table calls a split: its combinations were trained on, or never."""


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Scenes in order; arrays of one a scene, or of three slots each.

    Attributes:
        images: uint8 [n, 16, 16, 1].
        captions: texts.
        layout: int [n].
        digits: int [n, 3], 10 where there is no third digit.
        large, says_size: bool [n, 3].
    """

    images: np.ndarray
    captions: list[str]
    layout: np.ndarray
    digits: np.ndarray
    large: np.ndarray
    says_size: np.ndarray

    def first(self, number: int) -> "Scenes":
        """The first scenes."""
        cut = {
            field.name: getattr(self, field.name)[:number]
            for field in dataclasses.fields(self)
        }
        return Scenes(**cut)


def read_scenes(directory: Path, split: str) -> Scenes:
    """All scenes of a TFDS split; the dataset is made where it is not there yet."""
    records = list(open_builder(DATASET, str(directory)).as_data_source(split))
    columns = ("image", "layout", "digits", "large", "says_size")
    images, layout, digits, large, says_size = (
        np.stack([record[key] for record in records]) for key in columns
    )
    captions = [record["caption"].decode() for record in records]
    return Scenes(images, captions, layout, digits, large, says_size)
