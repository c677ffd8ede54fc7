"""From a parameter's path and shape to how it is cut over the mesh.

`tensor` cuts matrices as Megatron does: the first matrix of a pair by its outputs, the
second (`ROW_PARALLEL`) by its inputs, so that only the pair's result is summed over
devices. `fsdp` then cuts the largest axis that is left. Small leaves stay whole.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SMALLEST_CUT = 2**14
"""Leaves with fewer elements (of one block) are not worth a collective."""

ROW_PARALLEL = ("out", "down")
"""Modules whose kernel comes second in a pair."""

STACKED = "blocks"
"""Under this module the leading axis counts scanned blocks and is never cut."""


def partition_spec(
    path: tuple[str, ...], shape: tuple[int, ...], sizes: Mapping[str, int]
) -> PartitionSpec:
    """The spec of one leaf; `sizes` are the mesh's axis sizes."""
    first = 1 if STACKED in path else 0
    if math.prod(shape[first:]) < SMALLEST_CUT:
        return PartitionSpec()
    spec: list[str | None] = [None] * len(shape)
    if path[-1] == "kernel" and sizes["tensor"] > 1 and len(shape) - first >= 2:
        axis = len(shape) - 2 if path[-2] in ROW_PARALLEL else len(shape) - 1
        if shape[axis] % sizes["tensor"] == 0:
            spec[axis] = "tensor"
    free = [
        axis
        for axis in range(first, len(shape))
        if spec[axis] is None and shape[axis] % sizes["fsdp"] == 0
    ]
    if free and sizes["fsdp"] > 1:
        spec[max(free, key=lambda axis: shape[axis])] = "fsdp"
    return PartitionSpec(*spec)


def key_names(path: Any) -> tuple[str, ...]:
    """The names in a path of `jax.tree_util`."""
    return tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def is_in_block(names: tuple[str, ...]) -> bool:
    """Whether the path leads into a block, scanned (`blocks`) or not (`block_0`)."""
    return any(name == STACKED or name.startswith("block_") for name in names)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of a tree of arrays or shapes.

    Works on parameters and on everything shaped like them (average, Adam's moments),
    because only the end of a path decides.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        spec = partition_spec(key_names(path), leaf.shape, dict(mesh.shape))
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def place_abstract(tree: Any, mesh: Mesh) -> Any:
    """`ShapeDtypeStruct`s of the tree that carry their shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        tree,
        tree_shardings(tree, mesh),
    )
