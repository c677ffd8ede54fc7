"""One training run on four meshes: the same numbers, really cut."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from multistep_cm.sharding import rules
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from tests.training.tiny import (
    TRANSFORMER,
    host,
    noisy_params,
    random_batch,
    tiny_config,
)

STEPS = 4
MESHES = {
    "one": (1, 1, 1),
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "all": (2, 2, 2),
}

# Sums over devices are rounded in another order. Adam divides by the root of the
# second moment, so `training.epsilon` is set above the rounding of gradients that are
# zero in exact arithmetic. Float32 rounding is 6e-8; these hold with a factor of ten.
LOSS_TOLERANCE = 2e-5
PARAM_TOLERANCE = 2e-5


QUICK_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def config_for(mesh: str) -> ConfigDict:
    data, fsdp, tensor = MESHES[mesh]
    return tiny_config(
        **{**TRANSFORMER, "model.blocks": (1,)},
        method="cd",
        mesh__data=data,
        mesh__fsdp=fsdp,
        mesh__tensor=tensor,
        training__num_steps=STEPS,
        training__warmup_steps=0,
        training__decay="constant",
        training__epsilon=1e-3,
    )


@functools.cache
def trained(mesh_name: str) -> dict[str, Any]:
    """Losses, parameters and shapes of shards after some steps of distillation."""
    with pytest.MonkeyPatch.context() as patch:
        # Or nothing in so small a network would be cut.
        patch.setattr(rules, "SMALLEST_CUT", 128)
        # Four compilations of a whole step: less optimised, in half the time.
        patch.setattr(
            jax.stages.Lowered,
            "compile",
            functools.partialmethod(
                jax.stages.Lowered.compile, compiler_options=QUICK_COMPILATION
            ),
        )
        config = config_for(mesh_name)
        devices = jax.devices()[: np.prod(MESHES[mesh_name])]
        mesh = make_mesh(config.mesh, devices)
        teacher = noisy_params(config, mesh, seed=1)
        state = setup.init_state(config, mesh, teacher)
        frozen = setup.freeze(config, mesh, teacher)
        compiled = setup.build_step(config, mesh, frozen)
        shapes = {
            name: {
                jax.tree_util.keystr(path, simple=True, separator="/"): (
                    leaf.shape,
                    leaf.addressable_shards[0].data.shape,
                )
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            }
            for name, tree in {
                "params": state.params,
                "ema": state.ema,
                "optimizer": state.optimizer,
                "teacher": teacher,
            }.items()
        }
        where = jax.tree.map(
            lambda leaf: leaf.sharding, setup.abstract_batch(config, mesh)
        )
        losses, norms = [], []
        for step in range(STEPS):
            batch = jax.device_put(random_batch(config, seed=step), where)
            state, metrics = compiled(state, batch, frozen)
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["grad_norm"]))
    return {
        "losses": losses,
        "norms": norms,
        "params": host(state.params),
        "ema": host(state.ema),
        "shapes": shapes,
        "hlo": compiled.as_text(),
    }


@pytest.mark.parametrize("name", ["data", "fsdp", "all"])
def test_every_mesh_trains_the_same(name: str) -> None:
    one, other = trained("one"), trained(name)
    assert len(set(one["losses"])) == STEPS
    for key in ("losses", "norms"):
        np.testing.assert_allclose(other[key], one[key], rtol=LOSS_TOLERANCE)
    for key in ("params", "ema"):
        for a, b in zip(
            jax.tree.leaves(other[key]), jax.tree.leaves(one[key]), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=PARAM_TOLERANCE)


def test_training_moved_the_parameters_by_far_more_than_the_tolerance() -> None:
    config = config_for("one")
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    start = host(noisy_params(config, mesh, seed=1))
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), trained("one")["params"], start
    )
    assert np.median(jax.tree.leaves(moved)) > 50 * PARAM_TOLERANCE


@pytest.mark.parametrize(("name", "parts"), [("fsdp", 8), ("all", 4)])
def test_state_and_teacher_are_really_cut(name: str, parts: int) -> None:
    for tree, shapes in trained(name)["shapes"].items():
        whole = sum(np.prod(shape) for shape, _ in shapes.values())
        held = sum(np.prod(shard) for _, shard in shapes.values())
        # Small leaves stay whole; most of the memory does not.
        assert held < 2 * whole / parts, (tree, whole, held)
    moments = trained(name)["shapes"]["optimizer"]
    large = [key for key in moments if key.endswith("mlp/up/kernel")]
    assert len(large) == 2  # Adam's two
    for key in large:
        whole_shape, shard_shape = moments[key]
        assert np.prod(whole_shape) == parts * np.prod(shard_shape), key


def test_data_parallel_copies_the_parameters_and_sums_gradients() -> None:
    result = trained("data")
    assert all(whole == shard for whole, shard in result["shapes"]["params"].values())
    assert "all-reduce" in result["hlo"]
    assert "all-gather" in trained("fsdp")["hlo"]
    assert "all-reduce" not in trained("one")["hlo"]
