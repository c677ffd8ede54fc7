"""Precision and recall of samples (Kynkäänniemi et al. 2019), on the mesh in blocks.

The manifold of a set of feature vectors is the union of balls around each of them that
reach to its k-th nearest other vector, k = 3. Precision is the share of samples in the
manifold of the real images, recall the share of real images in that of the samples.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from multistep_cm.errors import UserError
from multistep_cm.sharding.agreement import wait_for_all
from multistep_cm.sharding.distributed import to_host
from multistep_cm.sharding.mesh import (
    batch_sharding,
    data_parallel_size,
    replicate,
)

NEIGHBOURS = 3
BLOCK = 1024


def precision_and_recall(
    real: np.ndarray,
    samples: np.ndarray,
    mesh: Mesh,
    neighbours: int = NEIGHBOURS,
) -> tuple[float, float]:
    """Precision and recall of `samples`.

    Args:
      real: features [number, size], finite, alike in every process.
      samples: features [other number, size].
      mesh: every process of it must call this.
      neighbours: k.

    Raises:
      UserError: a side has no more than k images.
      ValueError: sizes that differ.
    """
    if real.ndim != 2 or samples.ndim != 2 or real.shape[1] != samples.shape[1]:
        raise ValueError(f"features {real.shape} and {samples.shape} do not compare")
    for side, features in (("real images", real), ("samples", samples)):
        if len(features) <= neighbours:
            raise UserError(
                f"precision and recall need more than {neighbours} {side}; "
                f"there are {len(features)}"
            )
    # Distances do not change, and lose fewer digits around the origin.
    centre = real.mean(axis=0, dtype=np.float64)
    real, samples = (_centred(features, centre) for features in (real, samples))
    radii_of_real = radii(real, mesh, neighbours)
    radii_of_samples = radii(samples, mesh, neighbours)
    precision = _share_inside(samples, real, radii_of_real, mesh)
    return precision, _share_inside(real, samples, radii_of_samples, mesh)


def radii(features: np.ndarray, mesh: Mesh, neighbours: int) -> np.ndarray:
    """Squared distance of each vector to its k-th nearest other one, float32 [n]."""
    columns, padding = _blocks(features)
    is_real = np.arange(len(features) + padding) < len(features)
    compute = functools.partial(_nearest, neighbours=neighbours)
    return _by_rows(
        compute, features, mesh, columns, is_real.reshape(columns.shape[:2])
    )


def _share_inside(
    points: np.ndarray, centres: np.ndarray, reach: np.ndarray, mesh: Mesh
) -> float:
    """The share of `points` within `reach` (squared) of any of the `centres`."""
    columns, padding = _blocks(centres)
    # No distance is below a filling's reach.
    reach = np.pad(reach, (0, padding), constant_values=-1.0)
    inside = _by_rows(_inside, points, mesh, columns, reach.reshape(columns.shape[:2]))
    return float(inside.mean(dtype=np.float64))


@functools.partial(jax.jit, static_argnames="neighbours")
def _nearest(
    rows: jax.Array, columns: jax.Array, is_real: jax.Array, neighbours: int
) -> jax.Array:
    """[r] of rows [r, size] and columns [blocks, BLOCK, size], which hold the rows."""

    def step(
        nearest: jax.Array, block: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        values, counts = block
        found = jnp.where(counts, _squared_distances(rows, values), jnp.inf)
        both = jnp.concatenate([nearest, found], axis=1)
        return -jax.lax.top_k(-both, neighbours + 1)[0], None

    # One more than k, for each row finds itself.
    none = jnp.full((len(rows), neighbours + 1), jnp.inf)
    nearest, _ = jax.lax.scan(step, none, (columns, is_real))
    return nearest[:, -1]


@jax.jit
def _inside(rows: jax.Array, columns: jax.Array, reach: jax.Array) -> jax.Array:
    """Whether each of rows [r, size] lies within reach [blocks, BLOCK] of a column."""

    def step(
        found: jax.Array, block: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        values, limits = block
        near = _squared_distances(rows, values) <= limits
        return found | near.any(axis=1), None

    return jax.lax.scan(step, jnp.zeros(len(rows), bool), (columns, reach))[0]


def _squared_distances(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """[r, c], never below 0."""
    products = jnp.matmul(rows, columns.T, precision="highest")
    squares = (rows**2).sum(axis=1)[:, None] + (columns**2).sum(axis=1)
    return jnp.maximum(squares - 2 * products, 0.0)


def _by_rows(
    compute: Callable[..., jax.Array], rows: np.ndarray, mesh: Mesh, *whole: np.ndarray
) -> np.ndarray:
    """`compute(rows, *whole)` in blocks of rows, each split over the mesh."""
    parts = data_parallel_size(mesh)
    size = -(-min(BLOCK, len(rows)) // parts) * parts
    split = batch_sharding(mesh)
    placed = replicate(whole, mesh)
    found = []
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        block = np.pad(block, ((0, size - len(block)), (0, 0)))
        array = jax.make_array_from_callback(block.shape, split, block.__getitem__)
        result = compute(array, *placed)
        wait_for_all("measured a block of distances")
        found.append(to_host(result))
    return np.concatenate(found)[: len(rows)]


def _blocks(features: np.ndarray) -> tuple[np.ndarray, int]:
    """[blocks, BLOCK at most, size], and with how many zeros the last is filled."""
    size = min(BLOCK, len(features))
    padding = -len(features) % size
    filled = np.pad(features, ((0, padding), (0, 0)))
    return filled.reshape(-1, size, features.shape[1]), padding


def _centred(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return (features - centre).astype(np.float32)
