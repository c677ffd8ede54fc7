"""Guidance distillation against its formula in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.diffusion.parameterization import Conditioning, per_example
from multistep_cm.diffusion.schedules import cosine
from multistep_cm.losses.guidance import make_guidance_loss
from multistep_cm.losses.segments import ConsistencyOptions
from tests.diffusion import reference
from tests.losses.fakes import make_batch, make_keys, parameters

NULL, SIZE = 2, 8
SHIFTS = np.array([0.3, -0.4, 0.1])
LABELS = np.arange(SIZE) % 2
SCALES = np.linspace(0.0, 3.0, SIZE)


class Told:
    """`tanh(a z + b t + shift of the label + scale if told)`, which remembers."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(
        self,
        params: Any,
        z_t: jax.Array,
        t: jax.Array,
        cond: Conditioning,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        self.calls.append((z_t, t, cond, dropout_key))
        shift = jnp.asarray(SHIFTS, z_t.dtype)[cond["label"]]
        shift = shift + 0.1 * cond.get("guidance", jnp.zeros_like(shift))
        inner = params["a"] * z_t + params["b"] * per_example(t, z_t)
        return jnp.tanh(inner + per_example(shift, z_t))


@pytest.mark.parametrize("told", [True, False])
def test_the_guided_teacher_in_one_call(x64: None, told: bool) -> None:
    predict = Told()
    options = ConsistencyOptions(4, guidance_scale=0.0 if told else 1.5)
    loss = make_guidance_loss(predict, cosine(), options, NULL)
    cond = {"label": jnp.asarray(LABELS)}
    if told:
        cond["guidance"] = jnp.asarray(SCALES)
    batch = {**make_batch(SIZE), "cond": cond}
    teacher, student = (0.9, 0.2), (0.7, -0.3)
    frozen = {"teacher_params": parameters(*teacher)}
    value, metrics = loss(
        parameters(*student), batch, make_keys(SIZE), jnp.int32(0), frozen
    )
    (_, _, of_teacher, no_dropout), (z, time, of_student, dropout) = predict.calls
    assert no_dropout is None and dropout is not None
    assert "guidance" not in of_teacher
    assert ("guidance" in of_student) == told
    np.testing.assert_array_equal(of_teacher["label"][1::2], NULL)

    z_t, t = np.asarray(z), np.asarray(time).reshape(-1, 1, 1, 1)
    scale = (SCALES if told else np.full(SIZE, 1.5)).reshape(-1, 1, 1, 1)

    def network(params: tuple[float, float], shift: np.ndarray) -> np.ndarray:
        a, b = params
        return np.tanh(a * z_t + b * t + shift.reshape(-1, 1, 1, 1))

    with_label = network(teacher, SHIFTS[LABELS])
    without = network(teacher, np.full(SIZE, SHIFTS[NULL]))
    target = (1 + scale) * with_label - scale * without
    own = SHIFTS[LABELS] + (0.1 * SCALES if told else 0.0)
    weight = np.exp(reference.logsnr(np.asarray(time))) + 1
    square = np.mean((target - network(student, own)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(metrics["loss"], weight * square, rtol=1e-9)
    np.testing.assert_allclose(value, np.mean(weight * square), rtol=1e-9)


def test_no_gradient_goes_through_the_teacher(x64: None) -> None:
    options = ConsistencyOptions(4, guidance_scale=1.5)
    loss = make_guidance_loss(Told(), cosine(), options, NULL)
    batch = {**make_batch(SIZE), "cond": {"label": jnp.asarray(LABELS)}}
    student = parameters(0.7, -0.3)

    def of_teacher(teacher: Any) -> jax.Array:
        frozen = {"teacher_params": teacher}
        return loss(student, batch, make_keys(SIZE), jnp.int32(0), frozen)[0]

    gradient = jax.grad(of_teacher)(parameters(0.9, 0.2))
    assert all(float(leaf) == 0 for leaf in jax.tree.leaves(gradient))
