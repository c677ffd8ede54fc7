"""Consistency models in their own variables: x + sigma eps, Heun, and their losses.

With K = 1 our loss must be theirs (Song et al. 2023, algorithms 2 and 3; Song and
Dhariwal 2023), where `D(x + sigma eps, sigma)` stands for a denoiser of variance
exploding noise: `z_t / alpha_t` of ours is theirs, at sigma = sigma_t / alpha_t.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.diffusion.schedules import cosine
from multistep_cm.losses.consistency import make_consistency_loss
from multistep_cm.losses.segments import ConsistencyOptions
from tests.diffusion import reference
from tests.losses.fakes import (
    Recorder,
    make_batch,
    make_keys,
    numpy_network,
    parameters,
    run_recorded,
)

SIZE, NUM_STEPS = 64, 17
STUDENT, TEACHER, AVERAGE = (0.7, -0.3), (0.9, 0.2), (0.4, 0.1)
OPTIONS = ConsistencyOptions(
    1,
    NUM_STEPS,
    NUM_STEPS,
    anneal_steps=0,
    grid="karras",
    hop="heun",
    weight="uniform",
    norm="squared",
    target_decay=0.95,
)


def denoise(values: tuple[float, float], y: Any, noise: Any) -> reference.Array:
    """The network as a denoiser of y = x + sigma eps."""
    t = time_of_noise(noise)
    alpha = reference.alpha(reference.logsnr(t))
    return numpy_network(parameters(*values), alpha * y, t)


def time_of_noise(noise: Any) -> reference.Array:
    """The cosine schedule's time at which sigma / alpha is `noise`."""
    a, b = (np.arctan(np.exp(-end / 2)) for end in (15.0, -15.0))
    return (np.arctan(noise) - a) / (b - a)


@pytest.mark.parametrize("distill", [True, False])
@pytest.mark.parametrize("improved", [False, True])
def test_one_segment_is_a_consistency_model(
    x64: None, distill: bool, improved: bool
) -> None:
    options = OPTIONS
    if improved:
        options = dataclasses.replace(
            options,
            grid="karras_lognormal",
            weight="inverse_gap",
            norm="pseudo_huber",
            huber_epsilon=5.4e-4,
            target_decay=0.0,
        )
    frozen = {"teacher_params": parameters(*TEACHER)}
    frozen["target_params"] = parameters(*AVERAGE)
    _, metrics, calls = run_recorded(
        lambda predict: make_consistency_loss(predict, cosine(), options, distill),
        SIZE,
        parameters(*STUDENT),
        frozen,
    )
    target_call, student_call = calls[-2:]
    x = np.asarray(make_batch(SIZE)["image"])
    t, s = (np.asarray(c.t).reshape(-1, 1, 1, 1) for c in (student_call, target_call))
    high, low = (np.exp(-reference.logsnr(time) / 2) for time in (t, s))
    y = np.asarray(student_call.z_t) / reference.alpha(reference.logsnr(t))
    slope = (y - denoise(TEACHER, y, high)) / high
    y_low = y + (low - high) * slope
    slope_low = (y_low - denoise(TEACHER, y_low, low)) / low
    y_low = y + (low - high) * 0.5 * (slope + slope_low)
    if not distill:
        y_low = x + low * (y - x) / high
    expected_z = reference.alpha(reference.logsnr(s)) * y_low
    np.testing.assert_allclose(target_call.z_t, expected_z, rtol=1e-7, atol=1e-9)
    target = denoise(STUDENT if improved else AVERAGE, y_low, low)
    difference = denoise(STUDENT, y, high) - target
    # Their f(x, sigma) ends at the smallest noise, ours at the end of the DDIM line
    # through it: the same point up to alpha and sigma there.
    smallest = np.exp(-15 / 2)
    end = target + smallest * (y_low - target) / low
    start = denoise(STUDENT, y, high)
    start = start + smallest * (y - start) / high
    difference = (start - end) / (1 - smallest / high)
    square = np.mean(difference**2, axis=(1, 2, 3))
    losses = square
    if improved:
        d, gap = x[0].size, (high - low).ravel()
        c = 0.00054 * np.sqrt(d)
        losses = (np.sqrt(square * d + c**2) - c) / np.sqrt(d) / gap
    later = ~np.isclose(s.ravel(), 0.0)
    assert 0.5 < later.mean() < 1.0
    np.testing.assert_allclose(
        np.asarray(metrics["loss"])[later], losses[later], rtol=1e-6
    )


def test_two_dropout_masks_when_asked_for() -> None:
    for same in (True, False):
        options = dataclasses.replace(OPTIONS, same_dropout=same, target_decay=0.0)
        _, _, calls = run_recorded(
            lambda p, o=options: make_consistency_loss(p, cosine(), o, False),  # type: ignore[misc]
            SIZE,
            parameters(*STUDENT),
            {},
        )
        keys = []
        for call in calls:
            assert call.dropout_key is not None
            keys.append(tuple(np.asarray(jax.random.key_data(call.dropout_key))))
        assert (keys[0] == keys[1]) is same


def test_gradient_is_finite_and_leaves_the_average_alone() -> None:
    for grid in ("karras", "karras_lognormal"):
        options = dataclasses.replace(OPTIONS, grid=grid)
        loss = make_consistency_loss(Recorder(), cosine(), options, distill=True)

        def value(params: Any, average: Any, loss: Any = loss) -> jax.Array:
            frozen = {"teacher_params": parameters(*TEACHER), "target_params": average}
            batch, keys = make_batch(512), make_keys(512)
            return loss(params, batch, keys, jnp.int32(0), frozen)[0]

        gradient = jax.jit(jax.grad(value, argnums=(0, 1)))
        student, average = gradient(parameters(*STUDENT), parameters(*AVERAGE))
        leaves = jax.tree.leaves(student)
        assert all(np.isfinite(leaf) and float(leaf) != 0 for leaf in leaves)
        assert all(float(leaf) == 0 for leaf in jax.tree.leaves(average))
