"""The train step on a loss of a few numbers: what it does around any loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from multistep_cm.losses.signature import Batch, Metrics, Params
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.sharding.rules import place_abstract
from multistep_cm.training.setup import abstract_batch
from multistep_cm.training.state import TrainState, make_state
from multistep_cm.training.step import (
    compile_step,
    make_train_step,
    scale_images,
    unscale_images,
)
from tests.training.tiny import assert_trees_equal, host, random_batch, tiny_config

MESH = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


def toy_loss(
    params: Params, batch: Batch, keys: jax.Array, step: jax.Array, frozen: Any
) -> tuple[jax.Array, Metrics]:
    """Squares of an affine function of the image, the label's number and a draw."""
    noise = jax.vmap(jax.random.normal)(keys)
    t = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
    pixels = batch["image"].mean((1, 2, 3))
    guess = params["slope"] * pixels + params["table"][batch["cond"]["label"]]
    losses = jnp.square(guess - noise - frozen["offset"])
    return jnp.mean(losses), {"t": t, "loss": losses}


def toy_state(optimizer: optax.GradientTransformation) -> TrainState:
    params = {"slope": jnp.float32(0.5), "table": jnp.linspace(-1.0, 1.0, 11)}
    return jax.jit(lambda p: make_state(p, optimizer))(params)


FROZEN = {"offset": np.float32(0.25)}


def run(
    config: ConfigDict,
    optimizer: optax.GradientTransformation,
    calls: int = 1,
    loss: Any = toy_loss,
) -> tuple[Any, list[dict[str, np.ndarray]]]:
    """The state after `calls` calls, and their metrics, on the host."""
    frozen = jax.device_put(FROZEN, MESH.devices.item())
    state = toy_state(optimizer)
    step = make_train_step(loss, optimizer, config, MESH)
    compiled = compile_step(
        step,
        place_abstract(state, MESH),
        abstract_batch(config, MESH),
        place_abstract(frozen, MESH),
        MESH,
    )
    metrics = []
    for call in range(calls):
        batch = {
            name: jnp.asarray(value)
            for name, value in random_batch(config, seed=call).items()
        }
        state, row = compiled(state, batch, frozen)
        metrics.append(host(row))
    return host(state), metrics


@pytest.mark.parametrize("parts", [2, 16])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts: int) -> None:
    sgd = optax.sgd(1.0)  # the parameters move by the gradient itself
    whole, whole_rows = run(tiny_config(training__batch_size=16), sgd)
    config = tiny_config(training__batch_size=16, training__accumulation=parts)
    cut, cut_rows = run(config, sgd)
    assert abs(whole.params["slope"] - 0.5) > 1e-3
    for name in ("slope", "table"):
        np.testing.assert_allclose(
            cut.params[name], whole.params[name], rtol=0, atol=1e-6
        )
    for name, value in whole_rows[0].items():
        np.testing.assert_allclose(cut_rows[0][name], value, rtol=1e-5)


def test_steps_in_one_call_are_the_single_steps() -> None:
    adam = optax.adam(1e-2)
    single = tiny_config(training__batch_size=16)
    stacked = tiny_config(training__batch_size=16, training__steps_per_call=4)
    batches = random_batch(stacked, seed=0)
    frozen = jax.device_put(FROZEN, MESH.devices.item())

    def compiled(config: ConfigDict) -> Any:
        return compile_step(
            make_train_step(toy_loss, adam, config, MESH),
            place_abstract(toy_state(adam), MESH),
            abstract_batch(config, MESH),
            place_abstract(frozen, MESH),
            MESH,
        )

    together, rows = compiled(stacked)(
        toy_state(adam), jax.tree.map(jnp.asarray, batches), frozen
    )
    step, state, losses = compiled(single), toy_state(adam), []
    for i in range(4):
        batch = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), batches)
        state, row = step(state, batch, frozen)
        losses.append(float(row["loss"]))
    assert int(together.step) == int(state.step) == 4
    np.testing.assert_allclose(rows["loss"], losses, rtol=1e-6)
    assert rows["bin_count"].shape == (4, 2)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("optimised")
def test_the_state_is_donated_and_what_is_frozen_is_not() -> None:
    config, adam = tiny_config(), optax.adam(1e-2)
    frozen = jax.device_put(FROZEN, MESH.devices.item())
    state = toy_state(adam)
    compiled = compile_step(
        make_train_step(toy_loss, adam, config, MESH),
        place_abstract(state, MESH),
        abstract_batch(config, MESH),
        place_abstract(frozen, MESH),
        MESH,
    )
    batch = jax.tree.map(jnp.asarray, random_batch(config, seed=0))
    new, _ = compiled(state, batch, frozen)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    kept = jax.tree.leaves((new, frozen, batch))
    assert not any(leaf.is_deleted() for leaf in kept)


def test_a_new_state_shares_no_memory() -> None:
    state = toy_state(optax.adam(1e-2))
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(places)) == len(places)


def test_draws_depend_on_seed_and_step_alone() -> None:
    config = tiny_config(training__batch_size=16)
    still = optax.sgd(0.0)
    state, rows = run(config, still, calls=3)
    _, same = run(config, still, calls=3)
    assert_trees_equal(rows, same)
    assert int(state.step) == 3
    counts = np.stack([row["bin_loss"] for row in rows])
    assert len(np.unique(counts[:, 0])) == 3
    config.seed = 1
    _, other = run(config, still)
    assert other[0]["loss"] != rows[0]["loss"]


def count_dropped(
    params: Params, batch: Batch, keys: jax.Array, step: jax.Array, frozen: Any
) -> tuple[jax.Array, Metrics]:
    dropped = (batch["cond"]["label"] == 10).astype(jnp.float32)
    return 0.0 * params["slope"], {"t": dropped, "loss": dropped}


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_labels_are_dropped_at_their_rate(rate: float) -> None:
    config = tiny_config(training__batch_size=4096, training__label_dropout=rate)
    _, rows = run(config, optax.sgd(0.0), calls=3, loss=count_dropped)
    shares = np.array([row["loss"] for row in rows])
    # Five standard deviations of a binomial share.
    bound = 5 * np.sqrt(rate * (1 - rate) / 4096)
    assert np.all(np.abs(shares - rate) <= bound)
    assert rate == 0.0 or len(np.unique(shares)) > 1


def loss_is_time(
    params: Params, batch: Batch, keys: jax.Array, step: jax.Array, frozen: Any
) -> tuple[jax.Array, Metrics]:
    t = jax.vmap(jax.random.uniform)(keys).at[0].set(0.0).at[1].set(1.0)
    return params["slope"] * t.mean(), {"t": t, "loss": t}


def test_loss_by_time_sums_up() -> None:
    config = tiny_config(training__batch_size=64, training__time_bins=5)
    _, (row,) = run(config, optax.sgd(0.0), loss=loss_is_time)
    assert row["bin_count"].sum() == 64
    np.testing.assert_allclose(row["bin_loss"].sum() / 64, row["loss"], rtol=1e-6)
    means = row["bin_loss"] / row["bin_count"]
    edges = np.linspace(0, 1, 6)
    assert np.all((edges[:-1] <= means) & (means <= edges[1:]))
    np.testing.assert_allclose(row["grad_norm"], row["loss"], rtol=1e-6)


def test_the_rate_that_is_logged_is_the_rate_that_acted() -> None:
    config = tiny_config(training__warmup_steps=4, training__learning_rate=0.2)
    _, rows = run(config, optax.sgd(0.0), calls=3)
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, [0.05, 0.1, 0.15], rtol=1e-6)


def test_every_pixel_comes_back() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    for limits in ((-1.0, 1.0), (0.0, 1.0), (-2.0, 5.0)):
        scaled = scale_images(jnp.asarray(pixels), limits)
        np.testing.assert_allclose([scaled[0], scaled[-1]], limits, rtol=1e-6)
        np.testing.assert_array_equal(unscale_images(scaled, limits), pixels)
    outside = unscale_images(jnp.array([-1.5, 1.5]), (-1.0, 1.0))
    np.testing.assert_array_equal(outside, [0, 255])
