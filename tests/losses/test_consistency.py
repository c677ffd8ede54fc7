"""Algorithm 1 against the paper's pseudo-code in numpy float64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from multistep_cm.diffusion.schedules import cosine, interpolated_cosine
from multistep_cm.losses.consistency import make_consistency_loss
from multistep_cm.losses.segments import ConsistencyOptions
from multistep_cm.losses.signature import Loss, Predict
from tests.diffusion import reference
from tests.losses.fakes import (
    Call,
    Recorder,
    make_batch,
    make_keys,
    numpy_network,
    parameters,
    run_recorded,
)

STEP = jnp.int32(0)
STUDENT, TEACHER = (0.7, -0.3), (0.9, 0.2)
SIZE = 64
RESOLUTIONS = {"low": 32.0, "high": 64.0, "size": 64.0}
SCHEDULE = interpolated_cosine(32, 64, 64)


def make_options(student_steps: int, total: int, **changes: Any) -> ConsistencyOptions:
    """A constant grid of `total` steps."""
    return ConsistencyOptions(
        student_steps, total, total, anneal_steps=0, **{"eta": 0.75, **changes}
    )


def literal_target(
    x: reference.Array, z_t: reference.Array, times: Any, distill: bool, options: Any
) -> reference.Array:
    """x_ref of algorithm 1, each line as the paper has it."""
    t, s, t_step = (np.asarray(v, np.float64).reshape(-1, 1, 1, 1) for v in times)
    lt, ls, lu = (reference.logsnr(v, **RESOLUTIONS) for v in (t, s, t_step))
    teacher, student = parameters(*TEACHER), parameters(*STUDENT)
    x_teacher = numpy_network(teacher, z_t, t) if distill else x
    d = x[0].size
    square = np.sum((x_teacher - x) ** 2, axis=(1, 2, 3), keepdims=True)
    x_var = (options.eta if options.hop == "addim" else 0.0) * square / d
    z_s = reference.addim(x_teacher, z_t, lt, ls, x_var)
    if options.hop == "heun" and distill:
        x_s = numpy_network(teacher, z_s, s)
        e_t = (z_t - reference.alpha(lt) * x_teacher) / reference.sigma(lt)
        e_s = (z_s - reference.alpha(ls) * x_s) / reference.sigma(ls)
        step = np.exp(-ls / 2) - np.exp(-lt / 2)
        y_s = z_t / reference.alpha(lt) + step * (e_t + e_s) / 2
        z_s = reference.alpha(ls) * y_s
    z_ref = reference.ddim(numpy_network(student, z_s, s), z_s, ls, lu)
    z_ref = np.where(s == t_step, z_s, z_ref)
    return reference.inverse_ddim(z_ref, z_t, lt, lu)


def literal_loss(
    x_ref: reference.Array,
    z_t: reference.Array,
    t: reference.Array,
    student: dict[str, Any],
    options: ConsistencyOptions,
) -> reference.Array:
    """w_t ||x_ref - f(z_t, t)||, [batch]."""
    lt = reference.logsnr(t, **RESOLUTIONS)
    x_diff = x_ref - numpy_network(student, z_t, t.reshape(-1, 1, 1, 1))
    if options.norm == "element":
        values = reference.huber(np.abs(x_diff), options.huber_epsilon)
        norm = values.mean(axis=(1, 2, 3))
    else:
        norm = reference.huber(reference.rms(x_diff), options.huber_epsilon)
    weight = (reference.alpha(lt) / reference.sigma(lt)) ** 2 + 1
    return (weight**0.5 if options.weight == "sqrt_snr_plus_1" else weight) * norm


@dataclasses.dataclass
class Run:
    """One evaluation of the loss, and what the network was called with."""

    calls: list[Call]
    value: jax.Array
    metrics: dict[str, jax.Array]
    x: reference.Array
    z_t: reference.Array
    times: tuple[reference.Array, reference.Array, reference.Array]


def run_loss(options: ConsistencyOptions, distill: bool) -> Run:
    def make_loss(predict: Predict) -> Loss:
        return make_consistency_loss(predict, SCHEDULE, options, distill)

    frozen = {"teacher_params": parameters(*TEACHER)} if distill else {}
    value, metrics, calls = run_recorded(make_loss, SIZE, parameters(*STUDENT), frozen)
    reference_call, main_call = calls[-2:]
    t, s = np.asarray(main_call.t), np.asarray(reference_call.t)
    # The segment (t_step, t_step + 1 / K] that holds t.
    t_step = (np.ceil(t * options.student_steps - 1e-9) - 1) / options.student_steps
    s = np.where(np.abs(s - t_step) < 1e-12, t_step, s)
    x, z_t = np.asarray(make_batch(SIZE)["image"]), np.asarray(main_call.z_t)
    return Run(calls, value, metrics, x, z_t, (t, s, t_step))


CASES = [
    (False, make_options(1, 32)),
    (False, make_options(4, 32, weight="sqrt_snr_plus_1")),
    (True, make_options(1, 32, hop="ddim")),
    (True, make_options(1, 32, hop="addim")),
    (True, make_options(4, 16, hop="addim", norm="element")),
    (True, make_options(3, 96, hop="addim", eta=1.0, huber_epsilon=1.0)),
    (True, make_options(4, 32, hop="heun")),
    (True, make_options(8, 8, hop="ddim")),
]


@pytest.mark.parametrize(("distill", "options"), CASES)
def test_loss_is_algorithm_1(
    x64: None, distill: bool, options: ConsistencyOptions
) -> None:
    run = run_loss(options, distill)
    t, s, t_step = run.times
    total = int(options.teacher_steps_end)
    np.testing.assert_allclose(t - s, 1 / total, rtol=1e-9)
    np.testing.assert_allclose(t * total, np.rint(t * total), rtol=1e-9)
    assert np.any(s == t_step)
    lt = reference.logsnr(t, **RESOLUTIONS).reshape(-1, 1, 1, 1)
    eps = (run.z_t - reference.alpha(lt) * run.x) / reference.sigma(lt)
    assert scipy.stats.kstest(eps.ravel(), "norm").pvalue > 1e-3

    x_ref = literal_target(run.x, run.z_t, run.times, distill, options)
    expected = literal_loss(x_ref, run.z_t, t, parameters(*STUDENT), options)
    np.testing.assert_allclose(run.metrics["loss"], expected, rtol=1e-8)
    np.testing.assert_array_equal(run.metrics["t"], t)
    np.testing.assert_allclose(run.value, np.mean(expected), rtol=1e-9)


def test_calls_of_the_network(x64: None) -> None:
    """Teacher without dropout; the student's two calls share one mask and weights."""
    options = make_options(4, 16, hop="heun")
    calls = run_loss(options, distill=True).calls
    assert len(calls) == 4
    for teacher_call in calls[:2]:
        assert teacher_call.dropout_key is None
        assert float(teacher_call.params["a"]) == TEACHER[0]
    first, second = (call.dropout_key for call in calls[2:])
    assert first is not None and second is not None
    first, second = jax.random.key_data(first), jax.random.key_data(second)
    np.testing.assert_array_equal(first, second)
    for student_call in calls[2:]:
        assert float(student_call.params["a"]) == STUDENT[0]
    assert len(run_loss(make_options(4, 16), distill=True).calls) == 3
    assert len(run_loss(make_options(4, 16), distill=False).calls) == 2


@pytest.mark.parametrize("norm", ["example", "element"])
def test_training_with_all_segments_is_diffusion(norm: str, x64: None) -> None:
    """student_steps = T: w ||x - x_hat||, at epsilon 1 and beyond half its square."""
    run = run_loss(make_options(16, 16, norm=norm, huber_epsilon=1e-4), False)
    expected = literal_loss(
        run.x,
        run.z_t,
        run.times[0],
        parameters(*STUDENT),
        make_options(16, 16, norm=norm),
    )
    np.testing.assert_allclose(run.metrics["loss"], expected, rtol=1e-10)
    # With a wide Huber it is the v-loss of the diffusion model, up to the factor.
    wide = run_loss(make_options(16, 16, norm=norm, huber_epsilon=100.0), False)
    t = wide.times[0]
    lt = reference.logsnr(t, **RESOLUTIONS).reshape(-1, 1, 1, 1)
    alpha, sigma = reference.alpha(lt), reference.sigma(lt)
    v = (alpha * wide.z_t - wide.x) / sigma
    x_hat = numpy_network(parameters(*STUDENT), wide.z_t, t.reshape(-1, 1, 1, 1))
    v_hat = (alpha * wide.z_t - x_hat) / sigma
    v_loss = np.mean((v - v_hat) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(200 * wide.metrics["loss"], v_loss, rtol=1e-9)


def test_target_carries_no_gradient(x64: None) -> None:
    """The gradient is that of finite differences with x_ref held still."""
    options = make_options(2, 16)
    run = run_loss(options, distill=True)
    x_ref = literal_target(run.x, run.z_t, run.times, True, options)
    t = run.times[0]

    def frozen_loss(a: float, b: float) -> float:
        student = parameters(a, b)
        return float(literal_loss(x_ref, run.z_t, t, student, options).mean())

    (a, b), h = STUDENT, 1e-6
    expected = [
        (frozen_loss(a + h, b) - frozen_loss(a - h, b)) / (2 * h),
        (frozen_loss(a, b + h) - frozen_loss(a, b - h)) / (2 * h),
    ]
    loss = make_consistency_loss(Recorder(), SCHEDULE, options, True)
    frozen = {"teacher_params": parameters(*TEACHER)}

    def value(params: Any, frozen: Any) -> jax.Array:
        return loss(params, make_batch(SIZE), make_keys(SIZE), STEP, frozen)[0]

    gradient = jax.jit(jax.grad(value, argnums=(0, 1)))
    student, teacher = gradient(parameters(a, b), frozen)
    np.testing.assert_allclose([student["a"], student["b"]], expected, rtol=1e-6)
    assert all(float(leaf) == 0 for leaf in jax.tree.leaves(teacher))

    above, below = (
        float(jax.jit(value)(parameters(v, b), frozen)) for v in (a + h, a - h)
    )
    moving = (above - below) / (2 * h)
    assert abs(moving / expected[0] - 1) > 1e-2  # so the test can tell


@pytest.mark.parametrize("distill", [False, True])
def test_output_at_the_segment_end_is_not_used(distill: bool) -> None:
    """A network that returns NaN at s == t_step spoils neither value nor gradient."""
    options = make_options(4, 4)  # every draw is a first sub-step
    batch, keys = make_batch(SIZE), make_keys(SIZE)
    frozen = {"teacher_params": parameters(*TEACHER)}
    student_calls = []

    def poisoned(
        params: Any, z_t: jax.Array, t: jax.Array, cond: Any, key: jax.Array | None
    ) -> jax.Array:
        x_hat = Recorder()(params, z_t, t, cond, key)
        if key is None:
            return x_hat
        student_calls.append(t)
        return x_hat * jnp.nan if len(student_calls) == 1 else x_hat

    def value_and_gradient(predict: Any) -> Any:
        loss = make_consistency_loss(predict, SCHEDULE, options, distill)
        return jax.jit(
            jax.value_and_grad(lambda p: loss(p, batch, keys, STEP, frozen)[0])
        )(parameters(*STUDENT))

    value, gradient = value_and_gradient(poisoned)
    assert len(student_calls) == 2
    clean_value, clean_gradient = value_and_gradient(Recorder())
    assert jnp.isfinite(value)
    np.testing.assert_allclose(value, clean_value, rtol=1e-6)
    for name, leaf in clean_gradient.items():
        np.testing.assert_allclose(gradient[name], leaf, rtol=1e-5)


@pytest.mark.parametrize("distill", [False, True])
@pytest.mark.parametrize(("student_steps", "total"), [(1, 1), (1, 1280), (64, 64)])
def test_finite_in_float32(distill: bool, student_steps: int, total: int) -> None:
    """From t = 1 to t = 0 in one step, and both ends of fine grids."""
    options = make_options(student_steps, total)
    loss = make_consistency_loss(Recorder(), cosine(), options, distill)
    frozen = {"teacher_params": parameters(*TEACHER)}

    @jax.jit
    def value_and_gradient(params: Any) -> Any:
        return jax.value_and_grad(
            lambda p: loss(p, make_batch(512), make_keys(512), STEP, frozen)[0]
        )(params)

    value, gradient = value_and_gradient(parameters(*STUDENT))
    assert value.dtype == jnp.float32
    assert all(map(jnp.isfinite, [value, *gradient.values()]))


def test_batch_can_be_cut() -> None:
    options = make_options(4, 32)
    loss = jax.jit(make_consistency_loss(Recorder(), SCHEDULE, options, True))
    frozen = {"teacher_params": parameters(*TEACHER)}
    batch, keys, params = make_batch(8), make_keys(8), parameters(*STUDENT)
    whole, _ = loss(params, batch, keys, STEP, frozen)
    halves = [
        loss(params, {**batch, "image": batch["image"][h]}, keys[h], STEP, frozen)[0]
        for h in (slice(0, 4), slice(4, 8))
    ]
    np.testing.assert_allclose(np.mean(halves), whole, rtol=1e-5)


def test_annealing_compiles_once_and_refines_the_grid() -> None:
    options = ConsistencyOptions(2, 8, 64, anneal_steps=100)
    predict = Recorder()
    loss = jax.jit(make_consistency_loss(predict, SCHEDULE, options, False))
    smallest = []
    for step in (0, 50, 100, 1000):
        _, metrics = loss(
            parameters(*STUDENT), make_batch(512), make_keys(512), step, {}
        )
        smallest.append(float(metrics["t"].min()))
    assert len(predict.calls) == 2  # traced once
    # 22.6 grid steps half way: 11 a segment.
    expected = [1 / 8, 1 / 22, 1 / 64, 1 / 64]
    np.testing.assert_allclose(smallest, expected, rtol=1e-5)


def test_traced_student_steps_compile_once() -> None:
    """One compiled step serves every K, and each is what its own step would be."""
    predict = Recorder()
    loss = jax.jit(make_consistency_loss(predict, SCHEDULE, make_options(1, 32), True))
    frozen = {"teacher_params": parameters(*TEACHER)}
    batch, keys, params = make_batch(SIZE), make_keys(SIZE), parameters(*STUDENT)
    for count in (1, 4, 32):
        steps = {"student_steps": jnp.int32(count)}
        value, metrics = loss(params, batch, keys, STEP, frozen | steps)
        own = make_consistency_loss(Recorder(), SCHEDULE, make_options(count, 32), True)
        expected, of_own = jax.jit(own)(params, batch, keys, STEP, frozen)
        np.testing.assert_allclose(metrics["t"], of_own["t"], rtol=1e-6)
        np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert len(predict.calls) == 3


def test_multiscale_adds_the_pooled_difference(x64: None) -> None:
    options = make_options(2, 16, huber_epsilon=1.0)
    run = run_loss(dataclasses.replace(options, multiscale=1), distill=False)
    x_ref = literal_target(run.x, run.z_t, run.times, False, options)
    t = run.times[0]
    x_hat = numpy_network(parameters(*STUDENT), run.z_t, t.reshape(-1, 1, 1, 1))
    x_diff = x_ref - x_hat
    pooled = x_diff.reshape(SIZE, 2, 2, 2, 2, 1).mean(axis=(2, 4))
    norms = [reference.huber(reference.rms(d), 1.0) for d in (x_diff, pooled)]
    weight = np.exp(reference.logsnr(t, **RESOLUTIONS)) + 1
    expected = weight * (norms[0] + 2 * norms[1]) / 3
    np.testing.assert_allclose(run.metrics["loss"], expected, rtol=1e-8)
