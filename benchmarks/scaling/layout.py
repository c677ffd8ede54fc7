"""What is planned: the paper's runs, other chips, and slices that grow."""

import dataclasses

CONFIG = "configs/imagenet64.py"
BATCH_OF_A_CHIP = 32
"""Images of one chip in the paper's small run: 2048 on 64 chips."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One plan.

    Attributes:
        size, stage: arguments of the config.
        topology: as `multistep-cm plan` takes it.
        batch_size: global.
        accumulation: microbatches.
        flags: whether the compiler gets the chip's file in launch/xla_flags.
    """

    size: str
    stage: str
    topology: str
    batch_size: int = 2048
    accumulation: int = 1
    flags: bool = True

    @property
    def name(self) -> str:
        """Of the files that hold its plan."""
        slice_name = self.topology.replace(":", "_")
        parts = [self.size, self.stage, slice_name, f"{self.batch_size}"]
        if self.accumulation > 1:
            parts.append(f"in_{self.accumulation}")
        if not self.flags:
            parts.append("no_flags")
        return "_".join(parts)

    @property
    def chip(self) -> str:
        """The generation."""
        return self.topology.partition(":")[0]


PAPER = (
    Row("S", "cd", "v5e:8x8"),
    Row("S", "ct", "v5e:8x8"),
    Row("L", "cd", "v5e:16x16"),
    Row("L", "ct", "v5e:16x16"),
)
"""The runs of the paper, on its chips."""

CHIPS = (
    Row("S", "cd", "v5e:2x4", accumulation=8),
    Row("S", "cd", "v5e:8x8"),
    Row("S", "cd", "v5e:8x8", flags=False),
    Row("S", "cd", "v5e:16x16"),
    Row("S", "cd", "v4:4x4x4"),
    Row("S", "cd", "v5p:4x4x4"),
    Row("S", "cd", "v6e:8x8"),
    Row("L", "cd", "v5e:16x16"),
)
"""The same batch elsewhere."""

WEAK = tuple(
    Row("S", "cd", f"v5e:{slice_name}", batch_size=BATCH_OF_A_CHIP * chips)
    for slice_name, chips in (
        ("2x4", 8),
        ("4x4", 16),
        ("4x8", 32),
        ("8x8", 64),
        ("8x16", 128),
        ("16x16", 256),
    )
)
"""As many images for each chip, on more and more chips."""


def all_rows() -> list[Row]:
    """Every row once, the paper's first."""
    return list(dict.fromkeys([*PAPER, *CHIPS, *WEAK]))
