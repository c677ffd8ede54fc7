"""Mesh shapes, what is refused, and how a batch is cut."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from multistep_cm.errors import UserError
from multistep_cm.sharding.mesh import (
    batch_sharding,
    data_parallel_size,
    make_mesh,
    mesh_shape,
    replicated,
)


def sizes(data: int, fsdp: int, tensor: int) -> dict[str, int]:
    return {"data": data, "fsdp": fsdp, "tensor": tensor}


@pytest.mark.parametrize(
    ("asked", "devices", "expected"),
    [
        ((-1, 1, 1), 8, (8, 1, 1)),
        ((2, -1, 2), 8, (2, 2, 2)),
        ((1, 1, -1), 6, (1, 1, 6)),
        ((2, 2, 2), 8, (2, 2, 2)),
        ((-1, 1, 1), 1, (1, 1, 1)),
        ((-1, 4, 2), 8, (1, 4, 2)),
    ],
)
def test_one_size_is_filled_in(
    asked: tuple[int, int, int], devices: int, expected: tuple[int, int, int]
) -> None:
    assert mesh_shape(sizes(*asked), devices) == expected


@pytest.mark.parametrize(
    ("asked", "devices", "said"),
    [
        ((3, 1, 1), 8, "multiply to 3, but there are 8 devices"),
        ((2, 2, 1), 8, "multiply to 4, but there are 8 devices"),
        ((-1, 3, 1), 8, "multiply to 3, but there are 8 devices"),
        ((-1, -1, 1), 8, "-1 at most once"),
        ((0, 1, 1), 8, "at least 1"),
        ((-2, 1, 1), 8, "at least 1"),
    ],
)
def test_sizes_that_make_no_mesh(
    asked: tuple[int, int, int], devices: int, said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        mesh_shape(sizes(*asked), devices)
    assert f"mesh.data = {asked[0]}" in str(caught.value)


def test_batches_are_cut_over_data_and_fsdp_alone() -> None:
    mesh = make_mesh(sizes(2, 2, 2))
    assert data_parallel_size(mesh) == 4
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
    stacked = batch_sharding(mesh, leading_axes=1)
    array = jax.device_put(np.zeros((3, 8, 2)), stacked)
    assert {shard.data.shape for shard in array.addressable_shards} == {(3, 2, 2)}
    whole = jax.device_put(np.zeros((3, 8)), replicated(mesh))
    assert {shard.data.shape for shard in whole.addressable_shards} == {(3, 8)}


def test_a_mesh_of_some_devices() -> None:
    mesh = make_mesh(sizes(1, -1, 1), jax.devices()[:2])
    assert dict(mesh.shape) == sizes(1, 2, 1)
