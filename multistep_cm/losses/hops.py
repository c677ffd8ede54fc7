"""The teacher's step from t to s, as the x along which plain DDIM makes it."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax

from multistep_cm.diffusion import ddim
from multistep_cm.diffusion.guidance import Guidance, predict_guided
from multistep_cm.diffusion.parameterization import Conditioning
from multistep_cm.diffusion.schedules import Schedule
from multistep_cm.losses.signature import Params, Predict

HopName: TypeAlias = Literal["ddim", "addim", "heun"]

Hop: TypeAlias = Callable[
    [Params, jax.Array, jax.Array, jax.Array, jax.Array, Conditioning], jax.Array
]
"""`(teacher_params, x, z_t, t [batch], s [batch], cond) -> x_hop`.

`DDIM_{t->s}(x_hop, z_t)` is the teacher's z_s. `x` is the clean data, which aDDIM
measures the teacher's error against."""


NO_GUIDANCE = Guidance()


def make_hop(
    predict: Predict,
    schedule: Schedule,
    name: HopName,
    eta: float,
    guidance: Guidance = NO_GUIDANCE,
) -> Hop:
    """Any deterministic integrator as the teacher; it runs without dropout.

    `ddim`; `addim`, which puts back `eta` of the teacher's squared error (algorithm 1);
    `heun`, which calls the teacher twice. Guided, every x of the teacher is, but the
    one whose error aDDIM measures: x_var is the variance of x given z_t and the label,
    which guidance does not change and would miss.
    """

    def hop(
        teacher: Params,
        x: jax.Array,
        z_t: jax.Array,
        t: jax.Array,
        s: jax.Array,
        cond: Conditioning,
    ) -> jax.Array:
        def denoise(z: jax.Array, time: jax.Array, cond: Conditioning) -> jax.Array:
            return predict(teacher, z, time, cond, None)

        unguided, x_teacher = predict_guided(denoise, guidance, z_t, t, cond)
        if name == "ddim":
            return x_teacher
        logsnr_t, logsnr_s = schedule.logsnr(t), schedule.logsnr(s)
        if name == "addim":
            x_var = ddim.x_variance(x, unguided, eta)
            return ddim.addim_effective_x(x_teacher, z_t, logsnr_t, logsnr_s, x_var)
        z_s = ddim.ddim_step(x_teacher, z_t, logsnr_t, logsnr_s)
        _, x_teacher_s = predict_guided(denoise, guidance, z_s, s, cond)
        return ddim.heun_effective_x(x_teacher, x_teacher_s, logsnr_t, logsnr_s)

    return hop
