"""NVlabs/FastGen: `CMModel.single_train_step` with a teacher (CD)."""

import torch

from benchmarks.peers.torch_side import (
    ATTENTION,
    BLOCKS,
    CHANNELS,
    MULTIPLIERS,
    finish,
    prepare,
)
from benchmarks.train_step.work import Side, Work

ABSENT = (
    *["av", "boto3", "diffusers", "ftfy", "hydra", "imageio", "pandas", "timm"],
    *["torchvision", "transformers", "wandb", "webdataset"],
)
DECAY = 0.9999


def make_side(work: Work, path: str) -> Side:
    """Five forward-equivalents: teacher, target, student with gradient.

    `Trainer.run` cannot be called for one step: after the loss come the backward pass
    and the optimizer as in `Trainer.train_step`, and the average as its callback does.
    """
    images = prepare(work, path, ABSENT)
    from fastgen.configs.experiments.EDM.config_cm_cifar10 import (  # type: ignore[import-not-found]
        create_config,
    )
    from fastgen.configs.net import EDM_CIFAR10_Config  # type: ignore[import-not-found]
    from fastgen.methods import CMModel  # type: ignore[import-not-found]

    model_config = create_config().model
    network = EDM_CIFAR10_Config.copy()
    network.update(
        {
            "img_resolution": work.size,
            "label_dim": 0,
            "augment_dim": 0,
            "model_channels": CHANNELS,
            "channel_mult": MULTIPLIERS,
            "num_blocks": BLOCKS,
            "attn_resolutions": ATTENTION,
            "dropout": 0.0,
        }
    )
    model_config.net = network
    model_config.device = "cpu"
    model_config.precision = "float32"
    model_config.pretrained_model_path = ""
    model_config.input_shape = [3, work.size, work.size]
    model_config.loss_config.use_cd = True
    model_config.use_ema = True
    model = CMModel(model_config)
    model.on_train_begin()
    model.init_optimizers()
    if work.compiled:
        model.net.model = torch.compile(model.net.model)
        model.teacher.model = torch.compile(model.teacher.model)
    data = {"real": images, "condition": None, "neg_condition": None}

    def step() -> None:
        losses, _ = model.single_train_step(data, 1)
        losses["total_loss"].backward()
        model.optimizers_schedulers_step(1)
        model.optimizers_zero_grad(1)
        with torch.no_grad():
            for mean, parameter in zip(
                model.ema.parameters(), model.net.parameters(), strict=True
            ):
                mean.lerp_(parameter, 1 - DECAY)

    return finish(step, model.net)
