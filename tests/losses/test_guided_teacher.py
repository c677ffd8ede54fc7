"""CD from a guided teacher: x_var without guidance, everything else of it guided."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.diffusion.ddim import ddim_step
from multistep_cm.diffusion.guidance import Guidance, guided
from multistep_cm.diffusion.parameterization import Conditioning, per_example
from multistep_cm.diffusion.schedules import cosine
from multistep_cm.losses.consistency import make_consistency_loss
from multistep_cm.losses.hops import HopName, make_hop
from multistep_cm.losses.segments import ConsistencyOptions
from multistep_cm.training.methods import METHODS
from multistep_cm.truth import classes, making
from tests.diffusion import reference
from tests.losses.fakes import SHAPE, make_batch, make_keys, parameters
from tests.training.tiny import tiny_config

SCHEDULE = cosine()
NULL, SIZE = 3, 6
SHIFTS = np.array([0.3, -0.4, 0.1, 0.0])
RANDOM = np.random.default_rng(0)
X = RANDOM.uniform(-1, 1, (SIZE, *SHAPE))
Z_T = RANDOM.normal(size=(SIZE, *SHAPE))
LABELS = np.array([0, 1, 2, 0, 1, NULL])
T = np.array([0.9, 0.8, 0.6, 0.4, 0.3, 0.2])
S = T - 0.1
TEACHER = (0.9, 0.2)


class Labelled:
    """`tanh(a z + b t + shift of the label)`, which remembers its labels and times."""

    def __init__(self) -> None:
        self.calls: list[tuple[jax.Array, jax.Array | None]] = []

    def __call__(
        self,
        params: dict[str, Any],
        z_t: jax.Array,
        t: jax.Array,
        cond: Conditioning,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        self.calls.append((cond["label"], dropout_key))
        shift = jnp.asarray(SHIFTS, z_t.dtype)[cond["label"]]
        inner = params["a"] * z_t + params["b"] * per_example(t, z_t)
        return jnp.tanh(inner + per_example(shift, z_t))


def tall(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, 1, 1, 1)


def literal_hop(name: HopName, scale: np.ndarray) -> np.ndarray:
    """z_s in numpy; `scale` [SIZE, 1, 1, 1]."""

    def teacher(z: np.ndarray, t: np.ndarray) -> list[np.ndarray]:
        """Without and with guidance."""
        a, b = TEACHER
        with_label, without = (
            np.tanh(a * z + b * tall(t) + tall(SHIFTS[label]))
            for label in (LABELS, np.full(SIZE, NULL))
        )
        return [with_label, (1 + scale) * with_label - scale * without]

    lt, ls = reference.logsnr(tall(T)), reference.logsnr(tall(S))
    conditional, x_teacher = teacher(Z_T, T)
    x_var = np.mean((X - conditional) ** 2, axis=(1, 2, 3), keepdims=True)
    x_var *= 0.75 if name == "addim" else 0.0
    z_s = reference.addim(x_teacher, Z_T, lt, ls, x_var)
    if name == "heun":
        _, x_s = teacher(z_s, S)
        e_t = (Z_T - reference.alpha(lt) * x_teacher) / reference.sigma(lt)
        e_s = (z_s - reference.alpha(ls) * x_s) / reference.sigma(ls)
        step = np.exp(-ls / 2) - np.exp(-lt / 2)
        z_s = reference.alpha(ls) * (Z_T / reference.alpha(lt) + step * (e_t + e_s) / 2)
    return z_s


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("name", ["ddim", "addim", "heun"])
def test_the_hop_of_a_guided_teacher(x64: None, name: HopName, scale: float) -> None:
    """Guided where it is, and x_var of aDDIM from the conditional prediction."""
    predict = Labelled()
    hop = make_hop(predict, SCHEDULE, name, 0.75, Guidance(scale, NULL))
    x, z_t, t, s = (jnp.asarray(value) for value in (X, Z_T, T, S))
    cond = {"label": jnp.asarray(LABELS)}
    x_hop = hop(parameters(*TEACHER), x, z_t, t, s, cond)
    z_s = ddim_step(x_hop, z_t, SCHEDULE.logsnr(t), SCHEDULE.logsnr(s))
    expected = literal_hop(name, np.full((SIZE, 1, 1, 1), scale))
    np.testing.assert_allclose(z_s, expected, rtol=1e-8)
    assert len(predict.calls) == (2 if name == "heun" else 1)
    for label, dropout_key in predict.calls:
        assert label.shape == ((2 if scale else 1) * SIZE,)
        assert dropout_key is None


@pytest.mark.parametrize("name", ["ddim", "addim"])
def test_a_teacher_guided_within_an_interval(x64: None, name: HopName) -> None:
    within = Guidance(2.0, NULL, (0.3, 0.7))
    hop = make_hop(Labelled(), SCHEDULE, name, 0.75, within)
    x, z_t, t, s = (jnp.asarray(value) for value in (X, Z_T, T, S))
    x_hop = hop(parameters(*TEACHER), x, z_t, t, s, {"label": jnp.asarray(LABELS)})
    z_s = ddim_step(x_hop, z_t, SCHEDULE.logsnr(t), SCHEDULE.logsnr(s))
    scale = np.where((tall(T) >= 0.3) & (tall(T) <= 0.7), 2.0, 0.0)
    assert 0 < np.count_nonzero(scale) < SIZE
    np.testing.assert_allclose(z_s, literal_hop(name, scale), rtol=1e-8)


def test_x_var_is_that_of_the_exact_teacher_whatever_the_guidance(x64: None) -> None:
    """aDDIM's gain in norm over DDIM of the same guided x gives x_var back.

    The data are drawn from the mixture, so it is on average eta tr Var[x | z_t, label]
    / d: guidance moves x and puts no variance in or out.
    """
    mixture = making.isotropic([0.5, 0.5], [[0.8], [-0.8]], 0.3, "float64")
    exact = classes.class_denoiser(mixture, jnp.arange(2), 2, SCHEDULE)
    number, t, s = 512, 0.5, 0.45
    label = jnp.asarray(RANDOM.integers(2, size=number))
    x = jnp.asarray(RANDOM.normal(size=(number, 1)) * 0.3 + 0.8)
    x = jnp.where(label[:, None] == 0, x, -x)
    lt, ls = SCHEDULE.logsnr(t), SCHEDULE.logsnr(s)
    noise = jnp.asarray(RANDOM.normal(size=(number, 1)))
    z_t = SCHEDULE.alpha(t) * x + SCHEDULE.sigma(t) * noise
    times, cond = (jnp.full(number, t), jnp.full(number, s)), {"label": label}
    conditional = exact(z_t, times[0], cond)
    x_var = []
    for scale in (0.0, 1.0, 4.0):
        hop = make_hop(
            lambda params, z, t, cond, key: exact(z, t, cond),
            SCHEDULE,
            "addim",
            0.75,
            Guidance(scale, 2),
        )
        null = {"label": jnp.full(number, 2)}
        x_teacher = guided(conditional, exact(z_t, times[0], null), scale)
        z_s = ddim_step(hop(None, x, z_t, *times, cond), z_t, lt, ls)
        # z_s = alpha_s x + sqrt(sigma_s^2 + z_var / e^2) e, for d = 1.
        e_hat = (z_t - SCHEDULE.alpha(t) * x_teacher) / SCHEDULE.sigma(t)
        z_var = (z_s - SCHEDULE.alpha(s) * x_teacher) ** 2
        z_var -= (SCHEDULE.sigma(s) * e_hat) ** 2
        gain = SCHEDULE.alpha(s) - SCHEDULE.alpha(t) * SCHEDULE.sigma(s) / (
            SCHEDULE.sigma(t)
        )
        x_var.append(z_var / gain**2)
    np.testing.assert_allclose(x_var[0], 0.75 * (x - conditional) ** 2, rtol=1e-4)
    for other in x_var[1:]:
        np.testing.assert_allclose(other, x_var[0], rtol=1e-4, atol=1e-9)


def labelled_batch() -> dict[str, Any]:
    return {**make_batch(SIZE), "cond": {"label": jnp.asarray(LABELS)}}


@pytest.mark.parametrize("distill", [True, False])
def test_scale_zero_is_the_program_that_it_was(distill: bool) -> None:
    options = ConsistencyOptions(4, 32, 32, anneal_steps=0)

    def program(options: ConsistencyOptions, null_label: int) -> str:
        loss = make_consistency_loss(Labelled(), SCHEDULE, options, distill, null_label)
        frozen = {"teacher_params": parameters(*TEACHER)}
        inputs = (parameters(0.7, -0.3), labelled_batch(), make_keys(SIZE))
        return str(jax.make_jaxpr(loss)(*inputs, jnp.int32(0), frozen))

    plain = program(options, 0)
    off = dataclasses.replace(options, guidance_interval=(0.2, 0.4))
    assert program(off, NULL) == plain
    on = dataclasses.replace(off, guidance_scale=1.0)
    assert (program(on, NULL) == plain) == (not distill)


def test_the_teacher_is_guided_and_the_student_is_not() -> None:
    config = tiny_config(method="cd", consistency__guidance_scale=2.0)
    config.data.num_classes = NULL
    predict = Labelled()
    loss = METHODS["cd"].make_loss(predict, SCHEDULE, config)
    frozen = {"teacher_params": parameters(*TEACHER)}
    loss(parameters(0.7, -0.3), labelled_batch(), make_keys(SIZE), jnp.int32(0), frozen)
    (teacher, _), *student = predict.calls
    np.testing.assert_array_equal(teacher[::2], LABELS)
    np.testing.assert_array_equal(teacher[1::2], NULL)
    assert len(student) == 2
    for label, _ in student:
        np.testing.assert_array_equal(label, LABELS)


@pytest.mark.parametrize("name", ["ddim", "addim"])
def test_each_example_may_have_its_own_scale(x64: None, name: HopName) -> None:
    predict = Labelled()
    hop = make_hop(predict, SCHEDULE, name, 0.75, Guidance(0.0, NULL))
    x, z_t, t, s = (jnp.asarray(value) for value in (X, Z_T, T, S))
    scales = np.linspace(0.0, 3.0, SIZE)
    cond = {"label": jnp.asarray(LABELS), "guidance": jnp.asarray(scales)}
    x_hop = hop(parameters(*TEACHER), x, z_t, t, s, cond)
    z_s = ddim_step(x_hop, z_t, SCHEDULE.logsnr(t), SCHEDULE.logsnr(s))
    np.testing.assert_allclose(z_s, literal_hop(name, tall(scales)), rtol=1e-8)
