"""Learning rate, clipping, Adam and the moving average against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multistep_cm.training.ema import ema_decay, update_ema
from multistep_cm.training.optimizer import make_learning_rate, make_optimizer
from tests.training.tiny import tiny_config


def expected_rate(step: int, peak: float, warmup: int, total: int, decay: str) -> float:
    """Linear up to the peak at update number `warmup`, then down to 0 at `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / (total - warmup)
    return (
        peak
        * {
            "constant": 1.0,
            "linear": 1 - done,
            "cosine": 0.5 * (1 + np.cos(np.pi * done)),
        }[decay]
    )


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_learning_rate(decay: str, warmup: int) -> None:
    training = tiny_config(
        training__learning_rate=0.3,
        training__warmup_steps=warmup,
        training__num_steps=20,
        training__decay=decay,
    ).training
    rate = jax.vmap(make_learning_rate(training))(jnp.arange(20))
    expected = [expected_rate(step, 0.3, warmup, 20, decay) for step in range(20)]
    np.testing.assert_allclose(rate, expected, rtol=1e-5)


def test_a_run_shorter_than_its_warm_up_only_warms_up() -> None:
    training = tiny_config(training__num_steps=4, training__warmup_steps=100).training
    rate = [float(make_learning_rate(training)(step)) for step in range(4)]
    np.testing.assert_allclose(rate, 1e-3 * np.arange(1, 5) / 4, rtol=1e-5)


@pytest.mark.parametrize("norm", [0.5, 10.0])
def test_gradients_are_clipped_by_their_global_norm(norm: float) -> None:
    training = tiny_config(training__clip_norm=1.0, training__beta1=0.9).training
    gradient = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    gradient = jax.tree.map(lambda leaf: jnp.float32(leaf * norm / 5), gradient)
    optimizer = make_optimizer(training)
    _, state = optimizer.update(gradient, optimizer.init(gradient), gradient)
    (adam,) = (part for part in state if isinstance(part, optax.ScaleByAdamState))
    for name, leaf in gradient.items():
        clipped = leaf / max(norm, 1.0)
        np.testing.assert_allclose(adam.mu[name], 0.1 * clipped, rtol=1e-5)


def test_adam_moves_against_the_gradient_as_its_formula_says() -> None:
    training = tiny_config(
        training__num_steps=10,
        training__warmup_steps=4,
        training__beta2=0.95,
        training__clip_norm=1e9,
    ).training
    optimizer, params = make_optimizer(training), jnp.zeros(3)
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    mean, square, expected = np.zeros(3), np.zeros(3), np.zeros(3)
    for step in range(6):
        gradient = rng.standard_normal(3)
        updates, state = optimizer.update(jnp.float32(gradient), state, params)
        params = optax.apply_updates(params, updates)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        corrected = np.sqrt(square / (1 - 0.95 ** (step + 1))) + 1e-12
        rate = expected_rate(step, 1e-3, 4, 10, "cosine")
        expected -= rate * mean / (1 - 0.9 ** (step + 1)) / corrected
    np.testing.assert_allclose(params, expected, rtol=1e-4, atol=1e-8)


def test_average_warms_up() -> None:
    values = np.random.default_rng(0).standard_normal(30)
    average, expected = jnp.float32(7.0), 7.0
    for step, value in enumerate(values):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        traced = ema_decay(jnp.int32(step), 0.9)
        np.testing.assert_allclose(traced, decay, rtol=1e-6)
        average = update_ema({"a": average}, {"a": jnp.float32(value)}, traced)["a"]
    np.testing.assert_allclose(average, expected, rtol=1e-5)
    # What it started from is forgotten.
    assert abs(expected - 7.0) > 5
