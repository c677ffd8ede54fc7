"""What is tried: the kinds of faults, and the runs so small that they take seconds."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

Record = dict[str, Any]
"""One trial: a line of JSON in the results."""

KINDS: Mapping[str, tuple[str, float]] = {
    "kill": ("SIGKILL to a training run, which is then resumed", 1.0),
    "term": ("SIGTERM to a training run, which is then resumed", 0.25),
    "kill_command": ("SIGKILL to `evaluate` or `sample`, which is then repeated", 0.1),
    "damage": ("files of a workdir damaged, then restored", 2.0),
    "disk_full": ("the disk fills up, then there is room again", 0.05),
    "read_only": ("the workdir becomes read-only, then writable", 0.03),
    "clock": ("the clock jumps by days", 0.04),
    "record": ("a record of the dataset does not decode", 0.02),
    "worker_killed": ("one of two processes is killed", 0.02),
    "worker_stopped": ("one of two processes is stopped", 0.01),
    "mesh": ("killed, then resumed on another mesh or number of processes", 0.03),
}
"""Name of a kind to what it is, and how many of `--trials` it gets (at least one)."""

GOOD = ("to the bit", "within tolerance", "set aside", "harmless", "sentence")
"""Outcomes as they should be; all others are bugs, of which `wrong` is the worst:
a value that is not what was saved, and nobody was told.
"""

EVERY = 6
"""Steps between two saves."""

LAST = 30
"""Steps of a run."""

COMMON: Mapping[str, Any] = {
    "diffusion.noise_low": 8.0,
    "diffusion.noise_high": 8.0,
    "model.name": "mlp",
    "model.channels": (16,),
    "model.blocks": (1,),
    "model.attention_resolutions": (),
    "model.mlp_ratio": 2,
    "model.condition_width": 16,
    "training.num_steps": LAST,
    "training.batch_size": 8,
    "training.warmup_steps": 2,
    "training.log_every": 2,
    "training.time_bins": 2,
    "consistency.teacher_steps_start": 4.0,
    "consistency.teacher_steps_end": 16.0,
    "consistency.anneal_steps": LAST,
    "checkpoint.every_steps": EVERY,
    "checkpoint.keep": 2,
    "sampling.num_steps": 2,
    "sampling.num_previews": 4,
    "sampling.every_steps": 12,
    "evaluation.num_images": 96,
    "evaluation.batch_size": 96,
}
"""Config keys of every run."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A run to be disturbed.

    Attributes:
        name: of its reference.
        stage: the argument of configs/digits.py.
        values: config keys beside `COMMON`.
        per_call: steps in one call of the compiled program.
    """

    name: str
    stage: str
    values: Mapping[str, Any]
    per_call: int = 1

    def flags(self, data: Path, **changed: Any) -> list[str]:
        """Arguments of `train`; in `changed`, two underscores stand for a dot."""
        values = {**COMMON, **self.values, "data.directory": str(data)}
        values["training.steps_per_call"] = self.per_call
        if self.per_call == 1:
            # A stop writes the row that it interrupts: with a row for every step
            # there is none, and all rows can be compared.
            values["training.log_every"] = 1
        values |= {key.replace("__", "."): value for key, value in changed.items()}
        return [
            f"--config={ROOT / 'configs' / 'digits.py'}:{self.stage}",
            *(f"--config.{key}={value}" for key, value in values.items()),
        ]


TEACHER = Variant("teacher", "stage=teacher", {})
STUDENT = Variant(
    "student",
    "stage=ct,steps=2",
    {"consistency.target_decay": 0.9, "training.accumulation": 2},
    per_call=2,
)
VARIANTS: Sequence[Variant] = (TEACHER, STUDENT)
PAIR = Variant(
    "pair",
    "stage=teacher",
    # Above the rounding of gradients that are zero in exact arithmetic, by which Adam
    # would divide: other meshes round in another way.
    {"training.epsilon": 1e-3, "sampling.num_previews": 0},
)
"""What runs in two processes and on other meshes."""
