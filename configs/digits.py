"""Handwritten digits, 8x8: the main job in small, on any laptop.

What:      class-conditional diffusion teacher, then students of 1 to 16 steps.
Commands:  multistep-cm train --config=configs/digits.py:stage=teacher --workdir=T
           multistep-cm train --config=configs/digits.py:stage=cd,steps=4 --workdir=S \\
               --config.teacher.workdir=T
           multistep-cm train --config=configs/digits.py:stage=ct,steps=4 --workdir=S
Hardware:  2 CPU cores; launch/quickstart.sh runs all of it in a quarter of an hour.
Expected:  Fréchet distance 0.002 of the teacher, 0.002 to 0.005 of CD from 8 to 1 steps
           (measured by us: README.md).
"""

from ml_collections import ConfigDict

from multistep_cm.config import default_config, parse_arguments
from multistep_cm.errors import UserError

STAGES = ("teacher", "cd", "ct")


def get_config(arguments: str = "") -> ConfigDict:
    """`stage=teacher|cd|ct`, `steps=K` of the student."""
    chosen = parse_arguments(arguments, stage="teacher", steps=4)
    stage = chosen["stage"]
    if stage not in STAGES:
        raise UserError(f"config argument stage is {stage!r}, expected one of {STAGES}")

    config = default_config()
    config.data.name = "digits8"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.num_classes = 10
    config.diffusion.noise_low = 8.0
    config.diffusion.noise_high = 8.0

    config.model.name = "unet"
    config.model.channels = (32, 64)
    config.model.blocks = (1, 2)
    config.model.attention_resolutions = (4,)
    config.model.head_dim = 32
    config.model.condition_width = 128
    # Few blocks: a loop over them saves little compilation and costs some speed.
    config.model.scan_blocks = False

    training = config.training
    training.batch_size = 128
    training.log_every = 50
    training.ema_decay = 0.99
    config.checkpoint.every_steps = 500
    config.sampling.num_steps = 128
    config.evaluation.num_images = 1500
    if stage == "teacher":
        training.num_steps = 1500
        training.learning_rate = 2e-3
        return config

    config.method = stage
    training.num_steps = 600
    training.learning_rate = 1e-3
    training.label_dropout = 0.0
    consistency = config.consistency
    consistency.student_steps = chosen["steps"]
    # Fine grids need long runs: the discretisation is fitted to the iterations.
    consistency.teacher_steps_start = 32.0
    consistency.teacher_steps_end = 64.0
    consistency.anneal_steps = training.num_steps
    return config
