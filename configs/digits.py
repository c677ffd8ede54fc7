"""Handwritten digits, 8x8: the main job in small, on any laptop.

What:      class-conditional diffusion teacher, then students of 1 to 16 steps.
Commands:  multistep-cm train --config=configs/digits.py:stage=teacher --workdir=T
           multistep-cm train --config=configs/digits.py:stage=cd,steps=4 --workdir=S \\
               --config.teacher.workdir=T
           multistep-cm train --config=configs/digits.py:stage=ct,steps=4 --workdir=S
Hardware:  2 CPU cores; launch/quickstart.sh runs all of it in less than ten minutes.
Expected:  Fréchet distance 0.002 of the teacher, 0.002 to 0.005 of CD from 8 to 1 steps
           (measured by us: README.md).
"""

from ml_collections import ConfigDict

from multistep_cm.config import default_config, parse_arguments
from multistep_cm.errors import UserError
from multistep_cm.stages import apply_stage


def get_config(arguments: str = "") -> ConfigDict:
    """`stage` of `multistep_cm/stages.py`, `steps` of the student, `network`.

    `network=mlp` is a residual MLP, which trains several times faster than the UNet.
    """
    chosen = parse_arguments(arguments, stage="teacher", steps=0, network="unet")
    stage = chosen["stage"]
    config = default_config()
    config.data.name = "digits8"
    config.data.image_size = 8
    config.data.channels = 1
    config.data.num_classes = 10
    config.diffusion.noise_low = 8.0
    config.diffusion.noise_high = 8.0

    training = config.training
    training.batch_size = 128
    training.log_every = 50
    training.ema_decay = 0.99
    config.checkpoint.every_steps = 500
    config.sampling.num_steps = 128
    config.evaluation.num_images = 1500
    set_network(config, chosen["network"])
    if stage == "teacher":
        apply_stage(config, stage, steps=0, default_steps=4)
        return config

    training.num_steps = training.num_steps * 2 // 5
    training.learning_rate = 1e-3
    training.label_dropout = 0.0
    consistency = config.consistency
    # Fine grids need long runs: the discretisation is fitted to the iterations.
    consistency.teacher_steps_start = 32.0
    consistency.teacher_steps_end = 64.0
    consistency.anneal_steps = training.num_steps
    apply_stage(config, stage, chosen["steps"], default_steps=4)
    return config


def set_network(config: ConfigDict, network: str) -> None:
    """The network of this name, and how long its teacher trains."""
    model, training = config.model, config.training
    model.name = network
    model.condition_width = 128
    # Few blocks: a loop over them saves little compilation and costs some speed.
    model.scan_blocks = False
    if network == "unet":
        model.channels = (32, 64)
        model.blocks = (1, 2)
        model.attention_resolutions = (4,)
        model.head_dim = 32
        training.num_steps = 1500
        training.learning_rate = 2e-3
    elif network == "mlp":
        model.channels = (256,)
        model.blocks = (4,)
        model.attention_resolutions = ()
        model.mlp_ratio = 2
        training.num_steps = 5000
        training.learning_rate = 2e-3
    else:
        raise UserError(f"config argument network is {network!r}, expected: unet, mlp")
