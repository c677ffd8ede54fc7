"""openai/consistency_models: `CMTrainLoop.run_step`, distilling with Heun's solver."""

from typing import Any

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

ABSENT = ("blobfile", "mpi4py", "piq", "torchvision")
DECAY = 0.9999
TARGET_DECAY = 0.95


def make_side(work: Work, path: str) -> Side:
    """Six forward-equivalents: teacher twice, target, student with gradient."""
    images = prepare(work, path, ABSENT)
    from cm import dist_util, script_util, unet  # type: ignore[import-not-found]
    from cm.nn import update_ema  # type: ignore[import-not-found]
    from cm.train_util import CMTrainLoop  # type: ignore[import-not-found]

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    dist_util.dev = lambda: torch.device("cpu")
    # Its default needs a GPU, its other is float16; this one, also its own, is float32.
    unet.QKVFlashAttention = lambda channels, heads: unet.QKVAttention(heads)

    def make_network() -> tuple[torch.nn.Module, Any]:
        options = {
            **script_util.model_and_diffusion_defaults(),
            "image_size": work.size,
            "num_channels": CHANNELS,
            "num_res_blocks": BLOCKS,
            "num_heads": 1,
            "attention_resolutions": ",".join(map(str, ATTENTION)),
            "channel_mult": ",".join(map(str, MULTIPLIERS)),
        }
        network, diffusion = script_util.create_model_and_diffusion(
            **options, distillation=True
        )
        diffusion.loss_norm = "l2"
        return network, diffusion

    (network, diffusion), (target, _), (teacher, rule) = (
        make_network() for _ in range(3)
    )
    rule.distillation = False
    loop = CMTrainLoop(
        model=network.train(),
        target_model=target,
        teacher_model=teacher,
        teacher_diffusion=rule,
        training_mode="consistency_distillation",
        ema_scale_fn=lambda step: (TARGET_DECAY, 40),
        total_training_steps=10**6,
        diffusion=diffusion,
        data=iter(()),
        batch_size=work.batch,
        microbatch=-1,
        lr=1e-4,
        ema_rate=DECAY,
        log_interval=10**6,
        save_interval=-1,
        resume_checkpoint="",
    )
    # Its own mixes the shapes of float16 training with those of float32.
    loop._update_target_ema = lambda: update_ema(
        target.parameters(), network.parameters(), rate=TARGET_DECAY
    )
    return finish(lambda: loop.run_step(images, {}), network)
