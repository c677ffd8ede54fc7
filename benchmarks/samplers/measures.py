"""How far samples are from a known distribution: three numbers, in float64.

Each has a floor, the number that fresh draws of the distribution itself get.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from multistep_cm.evaluation.frechet import Moments, frechet_distance

METRICS = ("sliced_wasserstein", "frechet_distance", "variance_ratio")


@dataclasses.dataclass(frozen=True)
class Truth:
    """What samples are compared with.

    Attributes:
        draws: true draws, [count, d].
        moments: the exact mean and covariance, not those of `draws`.
        directions: unit columns to project on, [d, number].
    """

    draws: np.ndarray
    moments: Moments
    directions: np.ndarray


@dataclasses.dataclass(frozen=True)
class Floor:
    """Mean and standard deviation of a measure over repeated true draws."""

    mean: float
    spread: float


def random_directions(dimension: int, number: int = 128, seed: int = 0) -> np.ndarray:
    """Directions spread evenly over the sphere, as unit columns [dimension, number]."""
    columns = np.random.default_rng(seed).normal(size=(dimension, number))
    return columns / np.linalg.norm(columns, axis=0)


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, directions: np.ndarray) -> float:
    """The Wasserstein-1 distance of the projected sets, mean over the directions.

    `a` and `b` [count, d] of equal size, else ValueError. In one dimension the optimal
    transport of equal sets pairs them in order. A shift by v gives |v . direction|.
    """
    if a.shape != b.shape:
        raise ValueError(f"the sets have shapes {a.shape} and {b.shape}, expected one")
    sorted_a, sorted_b = (
        np.sort(np.asarray(points, np.float64) @ directions, axis=0)
        for points in (a, b)
    )
    return float(np.abs(sorted_a - sorted_b).mean())


def exact_moments(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    """Known moments, [d] and [d, d], in the form that is otherwise measured."""
    # The smallest count of which a Fréchet distance is asked: the exact side has none.
    count = len(mean) + 1
    scatter = np.asarray(covariance, np.float64) * (count - 1)
    return Moments(count, np.asarray(mean, np.float64), scatter)


def variance_ratio(samples: Moments, exact: Moments) -> float:
    """tr cov(samples) / tr cov(exact): below 1 when a sampler loses variance."""
    return float(np.trace(samples.covariance) / np.trace(exact.covariance))


def measure(samples: np.ndarray, truth: Truth) -> dict[str, float]:
    """The three numbers of `samples` [count, d], count as in `truth.draws` and > d.

    The squared Fréchet distance is that of the samples' moments to the exact ones.
    """
    found = Moments.of(samples)
    return {
        "sliced_wasserstein": sliced_wasserstein(
            samples, truth.draws, truth.directions
        ),
        "frechet_distance": frechet_distance(found, truth.moments),
        "variance_ratio": variance_ratio(found, truth.moments),
    }


def floors(repeats: Sequence[np.ndarray], truth: Truth) -> Mapping[str, Floor]:
    """The measures of at least two sets of fresh true draws, each as `samples`."""
    measured = [measure(draws, truth) for draws in repeats]
    return {
        metric: Floor(
            float(np.mean([one[metric] for one in measured])),
            float(np.std([one[metric] for one in measured], ddof=1)),
        )
        for metric in METRICS
    }
