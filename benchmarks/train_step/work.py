"""The work that every side does, and what a side is; without JAX and PyTorch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Work:
    """A step: its method (cd, ct or heun), our network (unet or uvit) and its batch.

    Peers have a UNet of 64, 128 and 128 channels, 2 blocks a level and attention at 16,
    in float32; ours has about as many FLOPs. The twin has our U-ViT.
    """

    method: str = "cd"
    model: str = "unet"
    batch: int = 16
    size: int = 32
    threads: int = 1
    compiled: bool = False


@dataclasses.dataclass(frozen=True)
class Side:
    """One that takes steps.

    Attributes:
        step: takes one and returns when it has ended.
        parameters: of the network that is trained.
        facts: what else is to be said: FLOPs, versions, device.
    """

    step: Callable[[], None]
    parameters: int
    facts: Mapping[str, Any]


class Maker(Protocol):
    """Builds a side; `path` is the peer's repository, and ours is empty."""

    def __call__(self, work: Work, path: str) -> Side: ...
