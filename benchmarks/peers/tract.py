"""apple/ml-tract: `TCDistillGoogleModel.train_op`."""

import os

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

ABSENT = ("clize", "imageio", "matplotlib", "tensorboard", "torchvision")


def make_side(work: Work, path: str) -> Side:
    """Five forward-equivalents: teacher, averaged student, student with gradient."""
    os.environ.setdefault("ML_DATA", path)
    images = prepare(work, path, ABSENT)
    import lib  # type: ignore[import-not-found]
    import tc_distill  # type: ignore[import-not-found]
    from lib.zoo.unet import UNet  # type: ignore[import-not-found]

    def make_network(name: str) -> torch.nn.Module:
        network = UNet(
            in_channel=3,
            channel=CHANNELS,
            emb_channel=4 * CHANNELS,
            channel_multiplier=MULTIPLIERS,
            n_res_blocks=BLOCKS,
            attn_rezs=ATTENTION,
            attn_heads=1,
            head_dim=None,
            use_affine_time=True,
            num_output=1,
            resample=True,
            init_rez=work.size,
            num_classes=1,
        )
        return torch.compile(network) if work.compiled else network  # type: ignore[return-value]

    tc_distill.get_model = make_network
    # It asks for the first GPU by its number.
    for place in (tc_distill, lib.distributed):
        vars(place).update(device=lambda: "cpu", device_id=lambda: "cpu")
    flags = {"train_len": "64M", "batch": work.batch}
    vars(tc_distill.FLAGS).update(flags)
    model = tc_distill.TCDistillGoogleModel(
        "cifar10", work.size, 1024, lr=2e-4, ema_residual=1e-3, sema=0.5, reset="none",
        time_schedule="1024,32,1",
    )  # fmt: skip
    info = lib.train.TrainInfo(0, 0.0)
    return finish(lambda: model.train_op(info, images, None), model.model)
