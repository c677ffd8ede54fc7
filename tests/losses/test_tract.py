"""TRACT against its pseudo-code in numpy float64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.diffusion.schedules import cosine
from multistep_cm.losses.segments import ConsistencyOptions
from multistep_cm.losses.tract import make_tract_loss
from tests.diffusion import reference
from tests.losses.fakes import (
    Recorder,
    make_batch,
    make_keys,
    numpy_network,
    parameters,
    run_recorded,
)

SIZE = 64
LIMITS = (-0.5, 0.6)
STUDENT, TEACHER, AVERAGE = (0.7, -0.3), (0.9, 0.2), (0.4, 0.1)
FROZEN = {"teacher_params": TEACHER, "target_params": AVERAGE}


def make_options(student_steps: int, total: int) -> ConsistencyOptions:
    return ConsistencyOptions(
        student_steps,
        total,
        total,
        anneal_steps=0,
        hop="ddim",
        weight="truncated_snr",
        norm="squared",
        target_decay=0.5,
    )


def frozen() -> dict[str, Any]:
    return {name: parameters(*values) for name, values in FROZEN.items()}


@pytest.mark.parametrize(("student_steps", "total"), [(1, 32), (4, 32), (8, 8)])
def test_loss_is_the_papers(x64: None, student_steps: int, total: int) -> None:
    options = make_options(student_steps, total)
    value, metrics, calls = run_recorded(
        lambda predict: make_tract_loss(predict, cosine(), options, LIMITS),
        SIZE,
        parameters(*STUDENT),
        frozen(),
    )
    assert [call.dropout_key is None for call in calls] == [True, True, False]
    t, s = (
        np.asarray(call.t, np.float64).reshape(-1, 1, 1, 1) for call in calls[2:0:-1]
    )
    np.testing.assert_allclose(t - s, 1 / total, rtol=1e-9)
    t_step = (np.ceil(t * student_steps - 1e-9) - 1) / student_steps
    lt, ls, lu = (reference.logsnr(time) for time in (t, s, t_step))
    z_t = np.asarray(calls[2].z_t)
    np.testing.assert_array_equal(calls[0].z_t, z_t)
    x_teacher = numpy_network(parameters(*TEACHER), z_t, t)
    assert np.any(x_teacher > LIMITS[1]) and np.any(x_teacher < LIMITS[0])
    z_s = reference.ddim(np.clip(x_teacher, *LIMITS), z_t, lt, ls)
    np.testing.assert_allclose(calls[1].z_t, z_s, rtol=1e-9)
    x_self = numpy_network(parameters(*AVERAGE), z_s, s)
    z_ref = np.where(
        np.abs(s - t_step) < 1e-12, z_s, reference.ddim(x_self, z_s, ls, lu)
    )
    x_ref = reference.inverse_ddim(z_ref, z_t, lt, lu)
    x_hat = numpy_network(parameters(*STUDENT), z_t, t)
    snr = (reference.alpha(lt) / reference.sigma(lt)) ** 2
    weight = np.maximum(snr, 1).ravel()
    expected = weight * np.mean((x_ref - x_hat) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-8)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-9)


def test_without_an_average_the_student_teaches_itself(x64: None) -> None:
    options = dataclasses.replace(make_options(1, 16), target_decay=0.0)
    _, _, calls = run_recorded(
        lambda predict: make_tract_loss(predict, cosine(), options, LIMITS),
        SIZE,
        parameters(*STUDENT),
        frozen(),
    )
    assert float(calls[1].params["a"]) == STUDENT[0]


def test_gradient_reaches_the_student_alone() -> None:
    for decay in (0.5, 0.0):
        options = dataclasses.replace(make_options(2, 16), target_decay=decay)
        loss = make_tract_loss(Recorder(), cosine(), options, LIMITS)

        def value(params: Any, frozen: Any, loss: Any = loss) -> jax.Array:
            batch, keys = make_batch(SIZE), make_keys(SIZE)
            return loss(params, batch, keys, jnp.int32(0), frozen)[0]

        gradient = jax.jit(jax.grad(value, argnums=(0, 1)))
        student, others = gradient(parameters(*STUDENT), frozen())
        leaves = jax.tree.leaves(student)
        assert all(np.isfinite(leaf) and abs(float(leaf)) > 1e-3 for leaf in leaves)
        assert all(float(leaf) == 0 for leaf in jax.tree.leaves(others))
    # The self-teacher's own weights are held still: finite differences agree.
    options = dataclasses.replace(make_options(2, 16), target_decay=0.5)
    loss = make_tract_loss(Recorder(), cosine(), options, LIMITS)
    with jax.enable_x64(True):

        def at(a: float) -> jax.Array:
            batch, keys = make_batch(SIZE), make_keys(SIZE)
            params = parameters(a, STUDENT[1])
            return loss(params, batch, keys, jnp.int32(0), frozen())[0]

        slope, h = jax.grad(at)(STUDENT[0]), 1e-5
        differences = (at(STUDENT[0] + h) - at(STUDENT[0] - h)) / (2 * h)
        np.testing.assert_allclose(slope, differences, rtol=1e-6)


def test_one_program_for_every_number_of_steps() -> None:
    predict = Recorder()
    loss = jax.jit(make_tract_loss(predict, cosine(), make_options(1, 32), LIMITS))
    for count in (1, 4, 32):
        steps = {"student_steps": jnp.int32(count)}
        batch, keys = make_batch(SIZE), make_keys(SIZE)
        params = parameters(*STUDENT)
        value, _ = loss(params, batch, keys, jnp.int32(0), frozen() | steps)
        own = make_tract_loss(Recorder(), cosine(), make_options(count, 32), LIMITS)
        expected, _ = jax.jit(own)(params, batch, keys, jnp.int32(0), frozen())
        np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert len(predict.calls) == 3
