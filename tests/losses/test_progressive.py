"""Progressive distillation against its pseudo-code in numpy float64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.diffusion.schedules import cosine
from multistep_cm.losses.hops import HopName
from multistep_cm.losses.progressive import make_progressive_loss
from multistep_cm.losses.segments import ConsistencyOptions
from multistep_cm.truth import flows, mixtures, presets
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
STUDENT, TEACHER = (0.7, -0.3), (0.9, 0.2)
OPTIONS = ConsistencyOptions(4, weight="truncated_snr", norm="squared", hop="ddim")


def column(value: Any) -> reference.Array:
    return np.asarray(value, np.float64).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("hop", ["ddim", "addim"])
@pytest.mark.parametrize("student_steps", [1, 4, 128])
def test_two_teacher_steps_in_one(x64: None, hop: HopName, student_steps: int) -> None:
    options = dataclasses.replace(OPTIONS, hop=hop, student_steps=student_steps)
    frozen = {"teacher_params": parameters(*TEACHER)}
    value, metrics, calls = run_recorded(
        lambda predict: make_progressive_loss(predict, cosine(), options),
        SIZE,
        parameters(*STUDENT),
        frozen,
    )
    assert [call.dropout_key is None for call in calls] == [True, True, False]
    x, z_t = np.asarray(make_batch(SIZE)["image"]), np.asarray(calls[2].z_t)
    t = column(calls[2].t)
    np.testing.assert_allclose(t * student_steps, np.rint(t * student_steps))
    middle, s = t - 0.5 / student_steps, t - 1 / student_steps
    lt, lm, ls = (reference.logsnr(np.maximum(time, 0)) for time in (t, middle, s))
    np.testing.assert_array_equal(calls[0].z_t, z_t)
    np.testing.assert_allclose(column(calls[1].t), middle, atol=1e-12)

    def step(z: reference.Array, time: Any, l_from: Any, l_to: Any) -> reference.Array:
        x_teacher = numpy_network(parameters(*TEACHER), z, time)
        square = np.mean((x_teacher - x) ** 2, axis=(1, 2, 3), keepdims=True)
        x_var = 0.75 * square if hop == "addim" else 0.0 * square
        return reference.addim(x_teacher, z, l_from, l_to, x_var)

    z_middle = step(z_t, t, lt, lm)
    np.testing.assert_allclose(calls[1].z_t, z_middle, rtol=1e-9)
    x_ref = reference.inverse_ddim(step(z_middle, middle, lm, ls), z_t, lt, ls)
    x_hat = numpy_network(parameters(*STUDENT), z_t, t)
    snr = (reference.alpha(lt) / reference.sigma(lt)) ** 2
    weight = np.maximum(snr, 1).ravel()
    expected = weight * np.mean((x_ref - x_hat) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-8)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-9)


def test_gradient_reaches_the_student_alone(x64: None) -> None:
    loss = make_progressive_loss(Recorder(), cosine(), OPTIONS)

    def value(params: Any, frozen: Any) -> jax.Array:
        batch, keys = make_batch(SIZE), make_keys(SIZE)
        return loss(params, batch, keys, jnp.int32(0), frozen)[0]

    frozen = {"teacher_params": parameters(*TEACHER)}
    student, teacher = jax.jit(jax.grad(value, argnums=(0, 1)))(
        parameters(*STUDENT), frozen
    )
    assert all(abs(float(leaf)) > 1e-3 for leaf in jax.tree.leaves(student))
    assert all(float(leaf) == 0 for leaf in jax.tree.leaves(teacher))


@pytest.mark.parametrize("student_steps", [1, 8])
def test_the_next_exact_function_solves_it(x64: None, student_steps: int) -> None:
    """Where the teacher jumps 2N segments exactly, the student of N has loss zero."""
    mixture = presets.two_normals("float64")
    schedule, flow = cosine(), flows.transport(mixture)
    exact = mixtures.denoiser(mixture, schedule)
    teacher = flows.consistency_function(flow, schedule, 2 * student_steps, exact)
    student = flows.consistency_function(flow, schedule, student_steps, exact)
    options = dataclasses.replace(OPTIONS, student_steps=student_steps)

    def distilled(student: Any) -> float:
        def predict(params: Any, z: Any, t: Any, cond: Any, key: Any) -> jax.Array:
            return (teacher if key is None else student)(z, t, cond)

        loss = make_progressive_loss(predict, schedule, options)
        x = mixtures.draw(mixture, jax.random.key(0), 256).reshape(256, 1, 1, 1)
        batch: dict[str, Any] = {"image": x, "cond": {}}
        frozen: dict[str, Any] = {"teacher_params": {}}
        keys = jax.random.split(jax.random.key(1), 256)
        return float(jax.jit(loss)({}, batch, keys, jnp.int32(0), frozen)[0])

    assert distilled(student) < 1e-16
    assert distilled(exact) > 1e-4  # so the test can tell


@pytest.mark.parametrize("student_steps", [1, 512])
def test_finite_in_float32(student_steps: int) -> None:
    options = dataclasses.replace(OPTIONS, hop="heun", student_steps=student_steps)
    loss = make_progressive_loss(Recorder(), cosine(), options)
    frozen = {"teacher_params": parameters(*TEACHER)}
    value, gradient = jax.jit(
        jax.value_and_grad(
            lambda p: loss(p, make_batch(512), make_keys(512), jnp.int32(0), frozen)[0]
        )
    )(parameters(*STUDENT))
    assert value.dtype == jnp.float32
    assert all(map(jnp.isfinite, [value, *gradient.values()]))
