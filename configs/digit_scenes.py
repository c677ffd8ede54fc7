"""Scenes of two or three handwritten digits, 16x16, drawn from their captions.

What:      text-to-image in small: a diffusion teacher that reads the bytes of English
           captions, a student that makes its guidance in one call, and students of 4, 8
           and 16 steps, all told the scale of guidance.
Commands:  multistep-cm train --config=configs/digit_scenes.py:stage=teacher --workdir=T
           multistep-cm train --config=configs/digit_scenes.py:stage=guidance \\
               --workdir=G --config.teacher.workdir=T
           multistep-cm train --config=configs/digit_scenes.py:stage=cd,steps=8 \\
               --workdir=S --config.teacher.workdir=T
           multistep-cm sample --workdir=S --guidance_scale=0.5 \\
               --prompt="a bright four left of a small nine, on white"
Hardware:  2 CPU cores; `python -m benchmarks.scenes` runs all of it.
Expected:  docs/text.md (measured by us, of runs as short as these).
"""

from ml_collections import ConfigDict

from multistep_cm.config import default_config, parse_arguments
from multistep_cm.errors import UserError
from multistep_cm.stages import apply_stage


def get_config(arguments: str = "") -> ConfigDict:
    """`stage` of `multistep_cm/stages.py`, `steps` of the student.

    `longer` multiplies the length of training; 1 is short of what it takes to learn
    which digit is which word.
    """
    chosen = parse_arguments(arguments, stage="teacher", steps=0, longer=1)
    stage, longer = chosen["stage"], chosen["longer"]
    if longer < 1:
        raise UserError(f"config argument longer is {longer}, expected at least 1")
    config = default_config()
    data = config.data
    data.name = "digit_scenes/16x16"
    data.image_size = 16
    data.channels = 1
    data.label_key = ""
    data.num_classes = 0
    data.text = "bytes"
    data.text_length = 88
    config.diffusion.noise_low = 16.0
    config.diffusion.noise_high = 16.0

    model = config.model
    model.name = "uvit"
    model.channels = (24, 48, 96)
    model.blocks = (1, 1, 3)
    model.attention_resolutions = (4,)
    model.head_dim = 32
    model.mlp_ratio = 2
    model.condition_width = 128
    model.text_width = 48
    model.text_blocks = 2
    model.text_head_dim = 24
    # Few blocks: a loop over them saves little compilation and costs some speed.
    model.scan_blocks = False

    training = config.training
    training.num_steps = 2400 * longer
    training.batch_size = 32
    training.learning_rate = 2e-3
    training.log_every = 50
    training.ema_decay = 0.998
    config.checkpoint.every_steps = 500
    config.sampling.num_steps = 64
    config.sampling.num_previews = 20
    config.evaluation.num_images = 1000
    if stage == "teacher":
        apply_stage(config, stage, steps=0, default_steps=8)
        return config

    training.num_steps = 600 * longer
    training.learning_rate = 1e-3
    training.caption_dropout = 0.0
    training.ema_decay = 0.99
    consistency = config.consistency
    # Fine grids need long runs: the discretisation is fitted to the iterations.
    consistency.teacher_steps_start = 64.0
    consistency.teacher_steps_end = 64.0
    consistency.anneal_steps = 0
    consistency.huber_epsilon = 1.0
    consistency.multiscale = 1
    if stage in ("guidance", "cd"):
        consistency.guidance_range = (0.0, 3.0)
    apply_stage(config, stage, chosen["steps"], default_steps=8)
    return config
