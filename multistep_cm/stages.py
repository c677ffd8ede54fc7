"""What a config file's `stage` trains: published methods as config keys.

A config file sets its data, network and run lengths; the stage says the method.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from multistep_cm.errors import UserError

# Squared error weighted by max(SNR, 1), of both methods.
_TRUNCATED = {"consistency.weight": "truncated_snr", "consistency.norm": "squared"}

# On Karras's grid, with the squared l2 norm: LPIPS would need a trained network.
_CONSISTENCY_MODEL = {
    "consistency.grid": "karras",
    "consistency.weight": "uniform",
    "consistency.norm": "squared",
    "consistency.target_decay": 0.95,
}

STAGES: Mapping[str, Mapping[str, Any]] = {
    "teacher": {"method": "denoising"},
    "guidance": {"method": "guidance"},
    "cd": {"method": "cd"},
    "ct": {"method": "ct"},
    # aDDIM puts back variance that a diffusion model's steps lose and a student's do
    # not: it is for the first phase only (docs/results.md, table 3).
    "progressive": {"method": "progressive", "consistency.hop": "ddim", **_TRUNCATED},
    "tract": {
        "method": "tract",
        "consistency.hop": "ddim",
        "consistency.target_decay": 0.5,
        "consistency.teacher_steps_start": 1024.0,
        "consistency.teacher_steps_end": 1024.0,
        "consistency.anneal_steps": 0,
        **_TRUNCATED,
    },
    # Consistency models, ImageNet 64 (Song et al. 2023, table 3): N = 40 points.
    "cm_cd": {
        "method": "cd",
        "consistency.hop": "heun",
        "consistency.teacher_steps_start": 39.0,
        "consistency.teacher_steps_end": 39.0,
        "consistency.anneal_steps": 0,
        **_CONSISTENCY_MODEL,
    },
    "cm_ct": {
        "method": "ct",
        "consistency.curriculum": "square_root",
        "consistency.teacher_steps_start": 2.0,
        "consistency.teacher_steps_end": 200.0,
        **_CONSISTENCY_MODEL,
    },
    # Improved consistency training (Song and Dhariwal 2023).
    "ict": {
        "method": "ct",
        "consistency.curriculum": "doubling",
        "consistency.teacher_steps_start": 10.0,
        "consistency.teacher_steps_end": 1280.0,
        "consistency.grid": "karras_lognormal",
        "consistency.weight": "inverse_gap",
        "consistency.norm": "pseudo_huber",
        "consistency.huber_epsilon": 5.4e-4,
    },
}
"""Name of a stage to the config keys that it sets."""

_ONE_STEP = ("cm_cd", "cm_ct", "ict")


def apply_stage(config: ConfigDict, stage: str, steps: int, default_steps: int) -> None:
    """Set the method of a stage and the student's number of steps.

    `steps` 0 stands for 1 in the stages of consistency models, which have one segment,
    and for `default_steps` in all others. Call it last, over the file's own grid.
    Raises UserError for an unknown stage.
    """
    if stage not in STAGES:
        expected = ", ".join(STAGES)
        raise UserError(f"config argument stage is {stage!r}, expected: {expected}")
    config.update_from_flattened_dict(STAGES[stage])
    config.consistency.student_steps = steps or (
        1 if stage in _ONE_STEP else default_steps
    )
