"""locuslab/ect: consistency tuning, its loss and the body of its training loop."""

import copy

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

DECAY = 0.9999


def make_side(work: Work, path: str) -> Side:
    """Four forward-equivalents: a target without gradient, a student with.

    `training_loop` cannot be called for one step, so its lines from the gradients to
    the average are repeated here; network and loss are the repository's.
    """
    images = prepare(work, path)
    from training.loss import ECMLoss  # type: ignore[import-not-found]
    from training.networks import ECMPrecond  # type: ignore[import-not-found]

    network = ECMPrecond(
        work.size,
        3,
        model_type="SongUNet",
        model_channels=CHANNELS,
        channel_mult=MULTIPLIERS,
        num_blocks=BLOCKS,
        attn_resolutions=ATTENTION,
        dropout=0.0,
    )
    if work.compiled:
        network.model = torch.compile(network.model)
    network.train()
    average = copy.deepcopy(network).eval().requires_grad_(False)
    loss = ECMLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    # It keeps dropout's state on GPUs only.
    torch.cuda.get_rng_state = torch.get_rng_state  # type: ignore[assignment]
    torch.cuda.set_rng_state = torch.set_rng_state  # type: ignore[assignment]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(net=network, images=images).mean().backward()
        for parameter in network.parameters():
            if parameter.grad is not None:
                gradient = parameter.grad
                torch.nan_to_num(gradient, nan=0, posinf=1e5, neginf=-1e5, out=gradient)
        optimizer.step()
        for mean, parameter in zip(
            average.parameters(), network.parameters(), strict=True
        ):
            mean.copy_(parameter.detach().lerp(mean, DECAY))

    return finish(step, network)
