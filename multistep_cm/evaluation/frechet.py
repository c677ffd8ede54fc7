"""Fréchet distance between two Gaussians fitted to features, in float64.

The distance of N(m1, S1) and N(m2, S2), squared as is the habit (Dowson and Landau
1982; Heusel et al. 2017), is

    |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1^1/2 S2 S1^1/2)^1/2).

The last trace is the sum of the singular values of S1^1/2 S2^1/2. Taking them, and
not the root of eigenvalues, keeps full precision when a covariance is singular, as it
is for pixels that never change.
"""

import dataclasses
import functools

import numpy as np

from multistep_cm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Moments:
    """The first two moments of a set of feature vectors.

    Attributes:
      count: number of vectors.
      mean: float64 [dimension].
      scatter: float64 [dimension, dimension], the sum over vectors of the outer
        product of (vector - mean) with itself. The covariance is this over count - 1.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """Moments of `features` [count, dimension], any real dtype, finite, count > 0.

        Raises:
          ValueError: another shape, no vector at all, or values that are not finite.
        """
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or 0 in features.shape:
            raise ValueError(
                f"features must be [count, dimension], not empty; got {features.shape}"
            )
        if not np.isfinite(features).all():
            raise ValueError("features hold NaN or infinite values")
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    @classmethod
    def of_statistics(
        cls, mean: np.ndarray, covariance: np.ndarray, count: int
    ) -> "Moments":
        """Moments of `count` vectors with this mean and this unbiased covariance."""
        mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
        return cls(count, mean, covariance * (count - 1))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together (Chan, Golub and LeVeque 1979).

        Merging in any order or grouping gives the same, up to rounding.
        """
        _check_same_dimension(self, other)
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        between = np.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance, float64 [dimension, dimension].

        Raises:
          UserError: fewer than two vectors.
        """
        if self.count < 2:
            raise UserError(
                f"a covariance needs at least 2 samples; there is {self.count}"
            )
        return self.scatter / (self.count - 1)

    @functools.cached_property
    def root(self) -> np.ndarray:
        """Symmetric square root of the covariance, float64 [dimension, dimension].

        Eigenvalues that rounding made negative count as 0.
        """
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


class RunningMoments:
    """Moments of vectors that come a few at a time.

    They are gathered to blocks first: merging costs as much as some thousand vectors.
    """

    def __init__(self, block: int = 2048) -> None:
        self._block = block
        self._waiting: list[np.ndarray] = []
        self._total: Moments | None = None

    def add(self, features: np.ndarray) -> None:
        """Counts vectors [count, dimension]; count may be 0."""
        if len(features):
            self._waiting.append(features)
        if sum(map(len, self._waiting)) >= self._block:
            self._flush()

    def merge(self, moments: Moments) -> None:
        """Counts the vectors of which these are the moments; count may be 0."""
        if moments.count:
            merged = moments if self._total is None else self._total.merge(moments)
            self._total = merged

    def moments(self, dimension: int) -> Moments:
        """Moments of all vectors so far; zeros where there are none."""
        self._flush()
        if self._total is None:
            return Moments(0, np.zeros(dimension), np.zeros((dimension, dimension)))
        return self._total

    def _flush(self) -> None:
        if self._waiting:
            self.merge(Moments.of(np.concatenate(self._waiting)))
            self._waiting = []


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Fréchet distance of the module docstring, never below 0.

    Symmetric in its arguments. Its estimate is biased upwards by an amount that grows
    with 1/count, so compare only numbers made with equal counts.

    Raises:
      ValueError: the dimensions differ.
      UserError: a side has no more samples than dimensions.
    """
    _check_same_dimension(a, b)
    dimension = len(a.mean)
    for side in (a, b):
        if side.count <= dimension:
            raise UserError(
                f"a Fréchet distance of {dimension}-dimensional features needs more "
                f"than {dimension} samples; there are {side.count}: "
                "use more images (evaluation.num_images)"
            )
    cross = np.linalg.svd(a.root @ b.root, compute_uv=False)
    shift = a.mean - b.mean
    distance = (
        shift @ shift
        + np.trace(a.covariance)
        + np.trace(b.covariance)
        - 2.0 * cross.sum()
    )
    return max(0.0, float(distance))


def _check_same_dimension(a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of {len(a.mean)} and of {len(b.mean)} dimensions "
            "cannot be compared"
        )
