"""The device mesh `(data, fsdp, tensor)` and the shardings of whole batches.

Batches are split over `data` and `fsdp`; parameters over `fsdp` and `tensor`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from multistep_cm.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def mesh_shape(sizes: Mapping[str, int], num_devices: int) -> tuple[int, int, int]:
    """The three sizes with one -1 filled in.

    Raises UserError when they do not multiply to the number of devices.
    """
    asked = {axis: sizes[axis] for axis in AXES}
    said = ", ".join(f"mesh.{axis} = {size}" for axis, size in asked.items())
    open_axes = [axis for axis, size in asked.items() if size == -1]
    fixed = int(np.prod([size for size in asked.values() if size != -1]))
    if len(open_axes) > 1 or any(s < 1 and s != -1 for s in asked.values()):
        raise UserError(f"{said}: expected sizes of at least 1, and -1 at most once")
    if num_devices % fixed or (not open_axes and fixed != num_devices):
        raise UserError(
            f"{said} multiply to {fixed}, but there are {num_devices} devices: set one "
            "to -1, or make the product fit"
        )
    if open_axes:
        asked[open_axes[0]] = num_devices // fixed
    return asked["data"], asked["fsdp"], asked["tensor"]


def make_mesh(
    sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over all devices (or those given), axis sizes as in `mesh_shape`."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(sizes, len(devices))
    return jax.make_mesh(
        shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def data_parallel_size(mesh: Mesh) -> int:
    """Into how many parts the mesh cuts a batch."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Arrays and random keys that all processes hold alike, whole on every device."""
    where = replicated(mesh)
    if where.is_fully_addressable:
        return jax.device_put(tree, where)

    def place(leaf: Any) -> jax.Array:
        # JAX puts no keys on devices of other processes, but their bits.
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            bits = place(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, where, array.__getitem__)

    return jax.tree.map(place, tree)


def batch_sharding(mesh: Mesh, leading_axes: int = 0) -> NamedSharding:
    """The batch axis over `data` and `fsdp`, after `leading_axes` unsplit axes."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading_axes, BATCH_AXES))
