"""The U-ViT of `train_step.ours` written anew in PyTorch, and its CD step.

No repository has one: this is what a plain PyTorch implementation of the same network
does, with PyTorch's own attention and Adam.
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.torch_side import finish, prepare
from benchmarks.train_step.work import Side, Work

CHANNELS, BLOCKS, HEAD_DIM, MLP_RATIO, CONDITION = (64, 256), (2, 5), 64, 4, 256
TIME_WIDTH = 128
TEACHER_STEPS, STUDENT_STEPS, DECAY = 64, 8, 0.9999


class ResNetBlock(nn.Module):
    """Norm, swish, convolution; norm, FiLM, swish, convolution; skips are joined."""

    def __init__(self, channels: int, has_skip: bool) -> None:
        super().__init__()
        groups = channels // 4
        self.norm_in = nn.GroupNorm(groups, channels)
        self.norm_skip = nn.GroupNorm(groups, channels) if has_skip else None
        self.norm_out = nn.GroupNorm(groups, channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(CONDITION, 2 * channels)

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, skip: torch.Tensor | None = None
    ) -> torch.Tensor:
        h = self.norm_in(x)
        if self.norm_skip is not None:
            h = (h + self.norm_skip(skip)) * math.sqrt(0.5)
        h = self.conv_in(functional.silu(h))
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        return x + self.conv_out(functional.silu(h))


class TransformerBlock(nn.Module):
    """x += MLP with FiLM; x += attention with normed queries and keys."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = MLP_RATIO * channels
        self.norm_mlp, self.norm_attention = (nn.LayerNorm(channels) for _ in "ma")
        self.up, self.down = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.film = nn.Linear(CONDITION, 2 * hidden)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.norm_q, self.norm_k = (nn.RMSNorm(HEAD_DIM, eps=1e-6) for _ in "qk")
        self.out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """x: [batch, tokens, channels]."""
        scale, shift = self.film(condition)[:, None].chunk(2, -1)
        h = functional.silu(self.up(self.norm_mlp(x)))
        x = x + self.down(torch.addcmul(shift, h, 1 + scale))
        h = self.qkv(self.norm_attention(x))
        h = h.unflatten(-1, (3, -1, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        q, k, v = h.unbind()
        h = functional.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v)
        return x + self.out(h.transpose(1, 2).flatten(2))


class UViT(nn.Module):
    """Two levels: ResNet blocks, and transformer blocks at half the size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        low, high = CHANNELS
        self.time = nn.Sequential(
            nn.Linear(TIME_WIDTH, CONDITION), nn.SiLU(), nn.Linear(CONDITION, CONDITION)
        )
        self.conv_in = nn.Conv2d(3, low, 3, padding=1)
        self.down = nn.ModuleList(ResNetBlock(low, False) for _ in range(BLOCKS[0]))
        self.widen, self.narrow = nn.Linear(low, high), nn.Linear(high, low)
        self.position = nn.Parameter(0.02 * torch.randn((size // 2) ** 2, high))
        self.middle = nn.ModuleList(TransformerBlock(high) for _ in range(BLOCKS[1]))
        self.up = nn.ModuleList(ResNetBlock(low, True) for _ in range(BLOCKS[0]))
        self.norm_out = nn.GroupNorm(low // 4, low)
        self.conv_out = nn.Conv2d(low, 3, 3, padding=1)
        exponents = torch.arange(TIME_WIDTH // 2) / (TIME_WIDTH // 2 - 1)
        self.register_buffer("frequencies", 1000 * 10_000.0**-exponents)

    def forward(self, z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """z_t: [batch, 3, size, size], t: [batch]; the prediction of v."""
        angles = t[:, None] * self.frequencies
        condition = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        condition = functional.silu(condition)
        x, skips = self.conv_in(z_t), []
        for block in self.down:
            x = block(x, condition)
            skips.append(x)
        x = functional.avg_pool2d(x, 2)
        height = x.shape[-2]
        tokens = self.widen(x.flatten(2).transpose(1, 2)) + self.position
        for block in self.middle:
            tokens = block(tokens, condition)
        x = self.narrow(tokens).transpose(1, 2).unflatten(2, (height, -1))
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
        for block in self.up:
            x = block(x, condition, skips.pop())
        return self.conv_out(functional.silu(self.norm_out(x)))


def make_side(work: Work, path: str) -> Side:
    """Five forward-equivalents: teacher, target, student with gradient."""
    images = prepare(work, path)
    student = UViT(work.size)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    average = copy.deepcopy(teacher)
    # After the copies: a compiled module is compiled anew when it is copied.
    call, call_teacher = student, teacher
    if work.compiled:
        call, call_teacher = torch.compile(student), torch.compile(teacher)  # type: ignore[assignment]
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4)

    def x_hat(network: nn.Module, z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = levels(t)
        return alpha * z_t - sigma * network(z_t, t)

    def step() -> None:
        noise = torch.randn_like(images)
        segment = torch.randint(STUDENT_STEPS, (work.batch,))
        number = torch.randint(1, TEACHER_STEPS // STUDENT_STEPS + 1, (work.batch,))
        start = segment / STUDENT_STEPS
        t, s = (start + n / TEACHER_STEPS for n in (number, number - 1))
        alpha, sigma = levels(t)
        z_t = alpha * images + sigma * noise
        with torch.no_grad():
            z_s = ddim(x_hat(call_teacher, z_t, t), z_t, t, s)
            end = ddim(x_hat(call, z_s, s), z_s, s, start)
            target = inverse_ddim(end, z_t, t, start)
        weight = (alpha / sigma) ** 2 + 1
        difference = x_hat(call, z_t, t) - target
        loss = (weight * torch.sqrt(difference**2 + 1e-8)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            kept, new = list(average.parameters()), list(student.parameters())
            torch._foreach_lerp_(kept, new, 1 - DECAY)

    return finish(step, student)


def levels(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma of a cosine schedule, [batch, 1, 1, 1], kept off 0."""
    angle = (math.pi / 2 * t).clamp(1e-3, math.pi / 2 - 1e-3)[:, None, None, None]
    return angle.cos(), angle.sin()


def ddim(
    x: torch.Tensor, z_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor
) -> torch.Tensor:
    """z_s of the paper's equation 2."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(t), levels(s)
    return alpha_s * x + sigma_s / sigma_t * (z_t - alpha_t * x)


def inverse_ddim(
    z_s: torch.Tensor, z_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor
) -> torch.Tensor:
    """The x with which `ddim` goes from z_t to z_s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(t), levels(s)
    ratio = sigma_s / sigma_t
    return (z_s - ratio * z_t) / (alpha_s - alpha_t * ratio)
