"""The averaged target of TRACT and consistency models: kept, updated, resumed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.checkpoints import Checkpoints
from multistep_cm.losses.signature import Batch, Metrics, Params
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.sharding.rules import place_abstract
from multistep_cm.training import setup
from multistep_cm.training.ema import target_decay
from multistep_cm.training.loop import train
from multistep_cm.training.optimizer import make_optimizer
from multistep_cm.training.state import make_state
from multistep_cm.training.step import compile_step, make_train_step
from tests.training.tiny import (
    assert_trees_equal,
    host,
    one_device,
    random_batch,
    tiny_config,
)

TRACT: dict[str, Any] = {
    "method": "tract",
    "consistency__hop": "ddim",
    "consistency__target_decay": 0.5,
    "consistency__teacher_steps_start": 16.0,
}


@pytest.fixture(autouse=True, scope="module")
def single() -> Iterator[None]:
    with one_device():
        yield


def test_decay_is_the_base_on_a_constant_grid() -> None:
    for steps in (1.0, 32.0):
        assert float(target_decay(0.5, jnp.array(steps), jnp.array(steps))) == 0.5
    # mu(k) = exp(s_0 log mu_0 / N(k)), with s_0 = 2 and N = 151 points.
    found = target_decay(0.9, jnp.array(1.0), jnp.array(150.0))
    np.testing.assert_allclose(found, np.exp(2 * np.log(0.9) / 151), rtol=1e-6)


def test_the_step_updates_it_and_the_loss_reads_it() -> None:
    config = tiny_config(**{**TRACT, "method": "ct", "training__learning_rate": 0.1})
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    optimizer = make_optimizer(config.training)

    def loss(
        params: Params, batch: Batch, keys: jax.Array, step: jax.Array, frozen: Any
    ) -> tuple[jax.Array, Metrics]:
        distance = params["w"] - 1.0
        seen = jnp.full(keys.shape, frozen["target_params"]["w"])
        return distance**2, {"t": jnp.zeros_like(seen), "loss": seen}

    start = {"w": jnp.float32(0.25)}
    state = jax.jit(lambda p: make_state(p, optimizer, has_target=True))(start)
    compiled = compile_step(
        make_train_step(loss, optimizer, config, mesh),
        place_abstract(state, mesh),
        setup.abstract_batch(config, mesh),
        {},
        mesh,
    )
    average = 0.25
    for call in range(3):
        batch = jax.tree.map(jnp.asarray, random_batch(config, seed=call))
        state, metrics = compiled(state, batch, {})
        np.testing.assert_allclose(metrics["loss"], average, rtol=1e-6)
        average = 0.5 * average + 0.5 * float(state.params["w"])
        np.testing.assert_allclose(state.target["w"], average, rtol=1e-6)
    assert average > 0.26


def state_of(config: Any, workdir: Path) -> Any:
    with Checkpoints(workdir) as checkpoints:
        mesh = make_mesh(config.mesh)
        restored = setup.restore_state(checkpoints, config, mesh)
    assert restored is not None
    return host(restored[0])


@pytest.mark.usefixtures("optimised")
def test_a_stopped_run_continues_bit_for_bit(
    digits_directory: Path, teacher_workdir: Path, tmp_path: Path
) -> None:
    def run(name: str, **changes: Any) -> Any:
        values = {**TRACT, "teacher__workdir": str(teacher_workdir), **changes}
        config = tiny_config(digits_directory, **values)
        assert train(config, tmp_path / name)
        return state_of(config, tmp_path / name)

    whole = run("whole")
    assert whole.target is not None
    # Step 4 was saved on the way: the run goes on from there.
    for step in (tmp_path / "whole" / "checkpoints").iterdir():
        if step.name == "8":
            step.rename(tmp_path / "step8")
    again = run("whole")
    assert_trees_equal(again, whole)
    leaves = zip(
        jax.tree.leaves(whole.target), jax.tree.leaves(whole.params), strict=True
    )
    assert any(np.any(a != b) for a, b in leaves)


def test_other_methods_keep_none(teacher_workdir: Path, digits_directory: Path) -> None:
    config = tiny_config(digits_directory)
    assert state_of(config, teacher_workdir).target is None
    state = setup.abstract_state(config, make_mesh(config.mesh))
    assert "target" not in setup.split_state(state)
