"""What grows, and by how much: each axis changes one key of the same run."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from multistep_cm.config import default_config

BASE: Mapping[str, Any] = {
    "data.image_size": 16,
    "data.channels": 3,
    "data.num_classes": 0,
    "model.channels": (32, 64),
    "model.blocks": (2, 2),
    "model.attention_resolutions": (8,),
    "training.batch_size": 16,
}
"""CD of a small UNet: seconds to compile, tenths of a second a step on one core."""

DEVICES = "devices"


@dataclasses.dataclass(frozen=True)
class Axis:
    """One thing that grows.

    Attributes:
        name: as the picture says it.
        sizes: on the horizontal axis.
        changes: the keys of the config that make each size.
        recompiles: whether every size is a program of its own.
        on_devices: whether the sizes are numbers of devices, else it is one.
    """

    name: str
    sizes: Sequence[int]
    changes: Sequence[Mapping[str, Any]]
    recompiles: bool = True
    on_devices: bool = False


def axes() -> dict[str, Axis]:
    """All of them, by their short names."""
    batches, sides, widths = (8, 16, 32, 64), (16, 32, 64), (32, 64, 128)
    depths, steps, devices = (1, 2, 4, 8), (1, 2, 8), (1, 2, 4, 8)
    found = (
        Axis("batch", batches, [{"training.batch_size": n} for n in batches]),
        # Attention stays on maps of 8x8, so that it does not grow besides.
        Axis("pixels", sides, [{"data.image_size": n, **levels(n)} for n in sides]),
        Axis("width", widths, [{"model.channels": (n, 2 * n)} for n in widths]),
        Axis("blocks", depths, [{"model.blocks": (n, n)} for n in depths]),
        Axis(
            "student_steps",
            steps,
            [{"consistency.student_steps": n} for n in steps],
            recompiles=False,
        ),
        Axis(
            DEVICES,
            devices,
            [{"training.batch_size": 16 * n} for n in devices],
            on_devices=True,
        ),
    )
    return {axis.name: axis for axis in found}


def levels(size: int) -> dict[str, Any]:
    """Levels down to 8x8, the first of 32 channels and all others of 64."""
    count = (size // 8).bit_length()
    return {
        "model.channels": (32, *(64,) * (count - 1)),
        "model.blocks": (2,) * count,
    }


def make_config(changes: Mapping[str, Any]) -> ConfigDict:
    """The base with these changes."""
    config = default_config()
    config.method = "cd"
    config.update_from_flattened_dict({**BASE, **changes})
    return config
