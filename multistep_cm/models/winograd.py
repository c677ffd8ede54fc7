"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3).

Each square y of 4x4 outputs comes from the window x of 6x6 inputs around it,

    y = A^T [ (G k G^T) * (B^T x B) ] A

(Lavin and Gray, arXiv 1509.09308). Summed over input features, the 36 products are 36
matrix products: four times fewer multiplications than the nine of a direct sum, for
transforms that are additions. With the points 0, +-1/sqrt(2), +-sqrt(2) and infinity
the error in float32 is two to three times that of a direct sum, and half of that with
the usual points 0, +-1, +-2.

Zero padding, stride 1; images are [batch, height, width, features], kernels
[3, 3, inputs, outputs].
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

TILE, TAPS = 4, 3
WINDOW = TILE + TAPS - 1
_ROOT = math.sqrt(2.0)
POINTS = (0.0, 1 / _ROOT, -1 / _ROOT, _ROOT, -_ROOT)
FEWEST_FEATURES = 32
"""With fewer, the transforms cost what the products save."""
CACHE = 24 * 1024
"""Numbers of one of the 36 products that are worked on at once. All 36 are then 3.5 MB:
more goes to memory and back between the transforms and the products."""


Matrix: TypeAlias = list[list[float]]


def _expand(roots: Sequence[float]) -> list[float]:
    """Coefficients of the product of all (x - root), that of x^0 first."""
    line = [1.0]
    for root in roots:
        above, below = [0.0, *line], [*line, 0.0]
        line = [a - root * b for a, b in zip(above, below, strict=True)]
    # Roots that cancel leave 1e-17.
    return [round(value, 12) for value in line]


def _matrices() -> tuple[Matrix, Matrix, Matrix]:
    """A [6, 4], G [6, 3], B^T [6, 6]: Cook and Toom's, by Lagrange's interpolation.

    A and G evaluate polynomials at the points; the last row is infinity.
    """
    a, g, b_t = [], [], []
    for point in POINTS:
        others = [other for other in POINTS if other != point]
        norm = math.prod(point - other for other in others)
        a.append([point**k for k in range(TILE)])
        g.append([point**k / norm for k in range(TAPS)])
        b_t.append([*_expand(others), 0.0])
    a.append([0.0] * (TILE - 1) + [1.0])
    g.append([0.0] * (TAPS - 1) + [1.0])
    b_t.append(_expand(POINTS))
    return a, g, b_t


A, G, B_T = _matrices()
A_T = [list(column) for column in zip(*A, strict=True)]
# Of both directions: [36, 9].
G_TWICE = [[x * y for x in rows for y in columns] for rows in G for columns in G]


def suits(x_shape: Sequence[int], outputs: int, dtype: DTypeLike) -> bool:
    """Whether it can be done in this precision, and is faster than a direct sum."""
    _, height, width, inputs = x_shape
    return (
        dtype == jnp.float32
        and height % TILE == 0
        and width % TILE == 0
        and min(inputs, outputs) >= FEWEST_FEATURES
    )


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cross-correlation of the size of x: [batch, height, width, outputs]."""
    both = jnp.asarray(G_TWICE, kernel.dtype)
    products = (both @ kernel.reshape(TAPS**2, -1)).reshape(-1, *kernel.shape[2:])
    inputs, outputs = kernel.shape[2:]

    def convolve_group(x: jax.Array) -> jax.Array:
        return _assemble(jnp.matmul(_windows(x), products), *x.shape[:3])

    images = group_size(x.shape, inputs + outputs, inputs * outputs)
    if images == x.shape[0]:
        return convolve_group(x)
    y = jax.lax.map(convolve_group, x.reshape(-1, images, *x.shape[1:]))
    return y.reshape(*x.shape[:3], outputs)


def to_kernel(x: jax.Array, cotangent: jax.Array) -> jax.Array:
    """The transpose of `kernel -> convolve(x, kernel)`: [3, 3, inputs, outputs]."""
    shape = (x.shape[-1], cotangent.shape[-1])

    def products_of(x: jax.Array, cotangent: jax.Array) -> jax.Array:
        return jnp.einsum("tnc,tnk->tck", _windows(x), _spread(cotangent))

    images = group_size(x.shape, sum(shape), 0)
    if images == x.shape[0]:
        products = products_of(x, cotangent)
    else:
        groups = [side.reshape(-1, images, *side.shape[1:]) for side in (x, cotangent)]
        products, _ = jax.lax.scan(
            lambda total, group: (total + products_of(*group), None),
            jnp.zeros((WINDOW**2, *shape), x.dtype),
            groups,
        )
    both = jnp.asarray(G_TWICE, x.dtype)
    kernel = both.T @ products.reshape(WINDOW**2, -1)
    return kernel.reshape(TAPS, TAPS, *shape)


def group_size(x_shape: Sequence[int], per_tile: int, fixed: int) -> int:
    """How many images are worked on at once: as many as fit the cache, at least one.

    per_tile: numbers that each of 36 products reads and writes for a tile of outputs,
    and `fixed` whatever the tiles. On several devices all at once: a loop over images
    would move them between devices.
    """
    batch, height, width, _ = x_shape
    if jax.device_count() > 1:
        return batch
    tiles = (height // TILE) * (width // TILE)
    fit = (CACHE - fixed) // (tiles * per_tile)
    return max(n for n in range(1, batch + 1) if batch % n == 0 and n <= max(1, fit))


def _windows(x: jax.Array) -> jax.Array:
    """B^T x B of every window: [36, tiles, features]."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = jnp.stack(_combine(B_T, _strided(x)))
    both = jnp.stack(_combine(B_T, _strided(columns)))
    return both.reshape(WINDOW**2, -1, x.shape[-1])


def _strided(x: jax.Array) -> list[jax.Array]:
    """Places 0 to 5 of all windows along axis 2, which is padded."""
    last = x.shape[2] - WINDOW + 1
    return [jax.lax.slice_in_dim(x, i, last + i, TILE, 2) for i in range(WINDOW)]


def _assemble(y: jax.Array, batch: int, height: int, width: int) -> jax.Array:
    """A^T y A of every tile, in its place: [batch, height, width, features]."""
    y = y.reshape(WINDOW, WINDOW, batch, height // TILE, width // TILE, -1)
    columns = jnp.stack(_combine(A_T, [y[:, j] for j in range(WINDOW)]), -2)
    rows = _combine(A_T, list(columns))
    return jnp.stack(rows, 2).reshape(batch, height, width, -1)


def _spread(y: jax.Array) -> jax.Array:
    """A y A^T of every tile, the transpose of `_assemble`: [36, tiles, features]."""
    batch, height, width, features = y.shape
    tiles = y.reshape(batch, height // TILE, TILE, width // TILE, TILE, features)
    columns = jnp.stack(_combine(A, [tiles[..., j, :] for j in range(TILE)]))
    both = jnp.stack(_combine(A, [columns[:, :, :, i] for i in range(TILE)]))
    return both.reshape(WINDOW**2, -1, features)


def _combine(matrix: Matrix, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """matrix @ parts, written out: many entries are 0 or 1."""

    def row(weights: list[float]) -> jax.Array:
        terms = [
            part if weight == 1 else weight * part
            for weight, part in zip(weights, parts, strict=True)
            if weight
        ]
        return sum(terms[1:], terms[0])

    return [row(weights) for weights in matrix]
