"""Parameters are whole one block at a time, and nothing of the batch ever is."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from multistep_cm.sharding import gathering, rules
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from multistep_cm.training.compilation import abstract_frozen
from tests.training.tiny import tiny_config

BATCH, BLOCKS, WIDTH = 88, 5, 24
"""Numbers that no other array of the program has as its size."""


@functools.cache
def program(name: str, dtype: str) -> str:
    """The compiled step of CD on eight devices that share everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "SMALLEST_CUT", 256)
        config = tiny_config(
            method="cd",
            model__name=name,
            model__channels=(WIDTH,),
            model__blocks=(BLOCKS,),
            model__attention_resolutions=(8,),
            model__dtype=dtype,
            model__remat="full",
            training__batch_size=BATCH,
            mesh__data=1,
            mesh__fsdp=8,
        )
        mesh = make_mesh(config.mesh)
        frozen = abstract_frozen(config, mesh)
        return str(setup.build_step(config, mesh, frozen).as_text())


def collectives(text: str, kind: str) -> list[tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every array that comes out of a collective of this kind."""
    found = []
    for line in text.splitlines():
        match = re.search(rf"= (.*?) {kind}(-start)?\(", line)
        if match:
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            found += [(d, tuple(map(int, s.split(",")))) for d, s in shapes if s]
    return found


@pytest.mark.usefixtures("users_hlo")
@pytest.mark.parametrize("name", ["uvit", "unet"])
def test_no_more_than_one_block_is_gathered_at_a_time(name: str) -> None:
    gathered = [
        shape
        for dtype, shape in collectives(program(name, "float32"), "all-gather")
        if np.prod(shape) > 256 and dtype != "u32"
    ]
    assert len(gathered) > 5
    # A stack of blocks would have BLOCKS as its first axis.
    assert not [shape for shape in gathered if shape[0] == BLOCKS and len(shape) > 2]


@pytest.mark.usefixtures("users_hlo")
@pytest.mark.parametrize("name", ["uvit", "unet"])
def test_no_array_of_the_network_holds_the_whole_batch(name: str) -> None:
    shapes = re.findall(r"(?:f32|bf16)\[([\d,]+)\]", program(name, "float32"))
    sizes = [tuple(map(int, shape.split(","))) for shape in set(shapes)]
    assert any(shape[0] == BATCH // 8 for shape in sizes)
    whole = [shape for shape in sizes if BATCH in shape]
    # Losses and times of all examples are counted together; images never are.
    assert all(np.prod(shape) <= 8 * BATCH for shape in whole), whole


@pytest.mark.usefixtures("users_hlo")
def test_gradients_are_summed_once_and_cut() -> None:
    text = program("uvit", "float32")
    sums = collectives(text, "all-reduce") + collectives(text, "reduce-scatter")
    kernels = [shape for _, shape in sums if np.prod(shape) > 256]
    # Each kernel of a block once: up, down, film, qkv, out; and those outside.
    assert 0 < len(kernels) <= 12, kernels
    assert not [shape for shape in kernels if shape[0] == BLOCKS and len(shape) > 2]


def test_the_gather_is_the_identity_forth_and_back() -> None:
    mesh = make_mesh({"data": 1, "fsdp": 8, "tensor": 1})
    cut = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    whole = NamedSharding(mesh, PartitionSpec(None, None))
    gather = gathering.make_gather(cut, whole)
    x = jax.device_put(jnp.arange(64.0).reshape(4, 16), cut)
    rows = jnp.arange(1.0, 5.0)[:, None]
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: jnp.sum(rows * gather(x) ** 2))
    )(x)
    np.testing.assert_allclose(value, np.sum(np.asarray(rows * x**2)), rtol=1e-6)
    np.testing.assert_array_equal(gradient, 2 * rows * x)
    assert gradient.sharding.is_equivalent_to(cut, 2)
    assert jax.jit(gather)(x).sharding.is_fully_replicated


def test_only_kernels_are_cast_and_only_what_is_cut_moves() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 4, "tensor": 1})
    block = {
        "up": {"kernel": jnp.ones((128, 512)), "bias": jnp.ones(512)},
        "position": jnp.ones((16, 16, 128)),
    }
    ready: Any = jax.jit(gathering.ready_block(mesh, jnp.bfloat16))(block)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype.name, ready)
    assert dtypes == {
        "up": {"kernel": "bfloat16", "bias": "float32"},
        "position": "float32",
    }
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(ready))


def test_blocks_are_left_for_later() -> None:
    names = [
        ("level_0_down", "blocks", "mlp", "up", "kernel"),
        ("level_0", "block_12", "mlp", "up", "kernel"),
        ("widen_0", "kernel"),
        ("condition", "time_in", "kernel"),
    ]
    assert [rules.is_in_block(path) for path in names] == [True, True, False, False]
