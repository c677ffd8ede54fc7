"""Cut parameters made whole where they are used, and nowhere else.

Left alone, XLA chooses what to move: it has cut attention scores over heads and summed
gradients as whole arrays. Here the choice is made for it. A block's parameters are cast
to the compute dtype while they are cut, gathered along `fsdp`, used and dropped; the
gradient of each is summed once, and a device keeps its part. Called inside a
rematerialised scan, so that no more than one block is whole at a time.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from multistep_cm.sharding.rules import is_in_block, key_names, partition_spec

Ready: TypeAlias = Callable[[Any], Any]
"""From a tree of cut parameters to the same tree, whole along `fsdp`."""


def ready_block(mesh: Mesh, dtype: DTypeLike) -> Ready:
    """For the tree of one block: its kernels come out in `dtype`."""

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        names = key_names(path)
        is_kernel = names[-1] == "kernel"
        return _gather(names, leaf.astype(dtype) if is_kernel else leaf, mesh)

    return lambda tree: jax.tree_util.tree_map_with_path(one, tree)


def ready_outside_blocks(mesh: Mesh) -> Ready:
    """For the tree of a whole network: blocks pass through."""

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        names = key_names(path)
        return leaf if is_in_block(names) else _gather(names, leaf, mesh)

    return lambda tree: jax.tree_util.tree_map_with_path(one, tree)


def _gather(names: tuple[str, ...], leaf: jax.Array, mesh: Mesh) -> jax.Array:
    """The leaf whole along `fsdp`; the same array when it is not cut along it."""
    cut = partition_spec(names, leaf.shape, dict(mesh.shape))
    if "fsdp" not in cut:
        return leaf
    whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in cut))
    return make_gather(NamedSharding(mesh, cut), NamedSharding(mesh, whole))(leaf)


def make_gather(cut: NamedSharding, whole: NamedSharding) -> Callable[..., jax.Array]:
    """The identity that moves an array from `cut` to `whole`, and its gradient back."""
    place = jax.lax.with_sharding_constraint

    @jax.custom_vjp
    def gather(leaf: jax.Array) -> jax.Array:
        return place(place(leaf, cut), whole)

    def forward(leaf: jax.Array) -> tuple[jax.Array, None]:
        return gather(leaf), None

    def backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
        # Without the first constraint the cut would spread into the block's own sums.
        return (place(place(cotangent, whole), cut),)

    gather.defvjp(forward, backward)
    return gather
