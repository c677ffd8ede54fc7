"""A run begins in shards: the teacher's, and the state that is made of them."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from multistep_cm.checkpoints import Checkpoints
from multistep_cm.sharding import rules
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from multistep_cm.training.teacher import load_ema
from tests.training.tiny import assert_trees_equal, noisy_params, tiny_config

CONFIG: dict[str, Any] = {"mesh__data": 1, "mesh__fsdp": -1}


@pytest.fixture(autouse=True)
def small_leaves_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "SMALLEST_CUT", 64)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A workdir with the average of a network, saved from one device."""
    config = tiny_config(**CONFIG)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        ema = noisy_params(config, mesh, seed=0)
        checkpoints.save(8, {"ema": ema}, {}, config.to_dict())
    return tmp_path


def largest_share(tree: Any) -> float:
    """The part of all numbers that one device holds, where it holds most."""
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.size
    return max(held.values()) / sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_a_teacher_and_its_student_are_born_in_shards(teacher: Path) -> None:
    config = tiny_config(**CONFIG, method="cd", teacher__workdir=str(teacher))
    mesh = make_mesh(config.mesh)
    step, params = load_ema(teacher, config, mesh)
    assert step == 8
    one = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    assert_trees_equal(params, noisy_params(config, one, seed=0))
    # An eighth, and the small leaves.
    assert largest_share(params) < 0.25
    state = setup.init_state(config, mesh, params)
    expected = setup.abstract_state(config, mesh)
    for leaf, shape in zip(
        jax.tree.leaves(state), jax.tree.leaves(expected), strict=True
    ):
        assert leaf.sharding == shape.sharding
    assert largest_share(state) < 0.25
    assert_trees_equal(state.ema, jax.tree.map(np.asarray, params))
