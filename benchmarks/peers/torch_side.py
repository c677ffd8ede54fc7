"""What all sides in PyTorch share."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train_step.work import Side, Work

CHANNELS, MULTIPLIERS, BLOCKS, ATTENTION = 64, [1, 2, 2], 2, [16]
"""The network's shape at 32x32."""


def prepare(work: Work, path: str, absent: Sequence[str] = ()) -> torch.Tensor:
    """Threads, the import path, a batch of images in -1..1.

    Packages in `absent`, which the step does not use but files of the repository
    import, are stood in for where they are not installed.
    """
    torch.set_num_threads(work.threads)
    sys.path.insert(0, path)
    sys.meta_path.append(StandIns(absent))
    torch.manual_seed(0)
    shape = (work.batch, 3, work.size, work.size)
    return torch.randint(256, shape).float() / 127.5 - 1


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Packages, and all below them, that have everything and do nothing."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.packages:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        return mock.MagicMock(name=spec.name)

    def exec_module(self, module: Any) -> None:
        """There is nothing to run."""


def finish(step: Callable[[], Any], network: torch.nn.Module) -> Side:
    """The side; its FLOPs are those that PyTorch counts in one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    facts = {
        "versions": {"torch": torch.__version__},
        "device": "cpu",
        "flops": counter.get_total_flops(),
    }
    number = sum(parameter.numel() for parameter in network.parameters())
    return Side(lambda: (step(), None)[1], number, facts)
