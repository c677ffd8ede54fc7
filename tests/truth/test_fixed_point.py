"""The exact multistep consistency function solves the distillation loss."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from multistep_cm.diffusion import ddim
from multistep_cm.diffusion.parameterization import Conditioning, Denoiser
from multistep_cm.diffusion.schedules import cosine
from multistep_cm.losses.consistency import make_consistency_loss
from multistep_cm.losses.segments import ConsistencyOptions
from multistep_cm.truth import flows, mixtures, presets

SCHEDULE = cosine()
BATCH = 256


def distillation_loss(
    teacher: Denoiser, student: Denoiser, options: ConsistencyOptions
) -> float:
    """Algorithm 1 on two normals, CD with the given denoisers."""

    def predict(
        params: Any, z_t: jax.Array, t: jax.Array, cond: Conditioning, key: Any
    ) -> jax.Array:
        return (teacher if key is None else student)(z_t, t, cond)

    x = mixtures.draw(presets.two_normals("float64"), jax.random.key(0), BATCH)
    loss = make_consistency_loss(predict, SCHEDULE, options, distill=True)
    batch = {"image": x.reshape(BATCH, 1, 1, 1), "cond": {}}
    keys = jax.random.split(jax.random.key(1), BATCH)
    frozen: dict[str, Any] = {"teacher_params": {}}
    return float(jax.jit(loss)({}, batch, keys, jnp.int32(0), frozen)[0])


def make_options(student_steps: int, total: int, **changes: Any) -> ConsistencyOptions:
    return ConsistencyOptions(
        student_steps, total, total, 0, weight="sqrt_snr_plus_1", **changes
    )


def exact_functions(student_steps: int) -> tuple[Any, Denoiser, Denoiser]:
    """Flow, denoiser, and K-segment consistency function."""
    mixture = presets.two_normals("float64")
    flow = flows.transport(mixture)
    exact = mixtures.denoiser(mixture, SCHEDULE)
    student = flows.consistency_function(flow, SCHEDULE, student_steps, exact)
    return flow, exact, student


@pytest.mark.parametrize("student_steps", [1, 4])
def test_zero_loss_with_the_exact_hop(x64: None, student_steps: int) -> None:
    """With a teacher whose DDIM step follows the flow, the loss is rounding."""
    total = 64
    flow, exact, student = exact_functions(student_steps)

    def teacher(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        logsnr_t, logsnr_s = SCHEDULE.logsnr(t), SCHEDULE.logsnr(t - 1 / total)
        z_s = flow(z_t, logsnr_t, logsnr_s)
        return ddim.inverse_ddim(z_s, z_t, logsnr_t, logsnr_s)

    options = make_options(student_steps, total, hop="ddim")
    assert distillation_loss(teacher, student, options) < 1e-10
    # So the test can tell: the denoiser itself is no solution.
    assert distillation_loss(teacher, exact, options) > 1e-2


@pytest.mark.parametrize(("hop", "finest"), [("heun", 1024), ("ddim", 4096)])
def test_loss_vanishes_on_fine_grids(x64: None, hop: Any, finest: int) -> None:
    """With the exact denoiser as teacher the loss falls with the hop's local error."""
    _, exact, student = exact_functions(4)
    coarse, fine = (
        distillation_loss(exact, student, make_options(4, total, hop=hop))
        for total in (256, finest)
    )
    assert fine < 1e-6
    # Below its epsilon the Huber norm squares the error, which is of order 1 or 2.
    assert fine < coarse * (256 / finest) ** 2
