"""The numbers of a set of samples against a set of real images.

Two Fréchet distances are reported, because on small images the feature space decides
which of two samplers looks better: one in the features of the classifier, one in plain
pixels. Both are shares of the variance of the real data.
"""

import dataclasses
from typing import Any

import numpy as np
from jax.sharding import Mesh

from multistep_cm.errors import UserError
from multistep_cm.evaluation.features import Classifier, features_and_logits
from multistep_cm.evaluation.frechet import Moments, frechet_distance
from multistep_cm.evaluation.spread import frechet_deviation

# Larger images are reduced to this side before their pixels are compared: a Fréchet
# distance needs more samples than dimensions.
_PIXEL_SIDE = 8
_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Reference:
    """What samples are measured against.

    Attributes:
      features: moments of the classifier's features, or None without a classifier.
      pixels: moments of the pixels, unscaled.
      pixel_variance: variance of the full-size pixels, summed over the pixels.
      floor: feature Fréchet distance of one random half of the real images to the
        other, the mean of several splits; None without a classifier. Both halves are
        small, so a perfect model with many samples scores less, about a quarter.
      pixel_floor: the same for the pixels.
      class_accuracy: share of the real images that the classifier names rightly.
    """

    features: Moments | None
    pixels: Moments
    pixel_variance: float
    floor: float | None
    pixel_floor: float
    class_accuracy: float | None


def make_reference(
    classifier: Classifier | None,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    num_splits: int = 4,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Reference:
    """Prepares the real images for `measure`.

    Args:
      classifier: None where the data has no labels; then only pixels are compared.
      images: uint8 [count, height, width, channels].
      labels: their classes, integer [count], where there are any.
      num_splits: random splits that the floors are the mean of.
      seed: of those splits.
      mesh: over which features are computed; None: one device of this process.

    Raises:
      UserError: images of another form, all equal, or too few of them: each half
        must hold more images than the features have dimensions.
    """
    _check(images)
    variance = _total_variance(images)
    if variance == 0:
        raise UserError("the reference images are all the same; nothing to compare to")
    pixels = _pixel_features(images)
    moments = Moments.of(pixels)
    pixel_floor = _floor(pixels, num_splits, seed) / _scale(moments)
    if classifier is None:
        return Reference(None, moments, variance, None, pixel_floor, None)
    features, logits = features_and_logits(classifier, images, mesh)
    return Reference(
        features=Moments.of(features),
        pixels=moments,
        pixel_variance=variance,
        floor=_floor(features, num_splits, seed),
        pixel_floor=pixel_floor,
        class_accuracy=_accuracy(logits, labels),
    )


def measure(
    classifier: Classifier | None,
    reference: Reference,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Measures samples.

    Args:
      classifier: the one that `reference` was made with.
      reference: from `make_reference`.
      images: uint8 [count, height, width, channels].
      labels: the classes asked for, integer [count]; None for unconditional samples.
      mesh: over which features are computed; None: one device of this process.

    Returns:
      num_images; frechet_distance, of classifier features (None without classifier);
      pixel_frechet_distance; for each of both a `_std`, its standard deviation over
      sets of samples (`spread.py`); class_accuracy, the share of samples that the
      classifier gives the asked class (None without labels or classifier);
      variance_ratio, the summed pixel variance of the samples over that of the real
      images.

    Raises:
      UserError: images of another form, or no more of them than feature dimensions.
    """
    _check(images)
    scale = _scale(reference.pixels)
    pixels = _pixel_features(images)
    pixel_distance = frechet_distance(Moments.of(pixels), reference.pixels)
    distance = deviation = accuracy = None
    if classifier is not None and reference.features is not None:
        features, logits = features_and_logits(classifier, images, mesh)
        distance = frechet_distance(Moments.of(features), reference.features)
        deviation = frechet_deviation(features, reference.features)
        accuracy = _accuracy(logits, labels)
    return {
        "num_images": len(images),
        "frechet_distance": distance,
        "frechet_distance_std": deviation,
        "pixel_frechet_distance": pixel_distance / scale,
        "pixel_frechet_distance_std": frechet_deviation(pixels, reference.pixels)
        / scale,
        "class_accuracy": accuracy,
        "variance_ratio": _total_variance(images) / reference.pixel_variance,
    }


def _floor(features: np.ndarray, num_splits: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    half = len(features) // 2
    distances = []
    for _ in range(num_splits):
        order = rng.permutation(len(features))
        first, second = features[order[:half]], features[order[half:]]
        distances.append(frechet_distance(Moments.of(first), Moments.of(second)))
    return float(np.mean(distances))


def _accuracy(logits: np.ndarray, labels: np.ndarray | None) -> float | None:
    if labels is None:
        return None
    if np.shape(labels) != (len(logits),):
        raise UserError(
            f"{len(logits)} images need as many labels; got {np.shape(labels)}"
        )
    return float(np.mean(logits.argmax(axis=1) == np.asarray(labels)))


def _scale(pixels: Moments) -> float:
    return float(np.trace(pixels.covariance))


def _pixel_features(images: np.ndarray) -> np.ndarray:
    """Pixels float64 [count, dimension], 0 to 1, reduced by area to 8x8 at most."""
    rows = _area_matrix(images.shape[1])
    columns = _area_matrix(images.shape[2])
    chunks = [
        np.einsum(
            "hy,nyxc,wx->nhwc",
            rows,
            images[start : start + _CHUNK] / 255.0,
            columns,
            optimize=True,
        )
        for start in range(0, len(images), _CHUNK)
    ]
    return np.concatenate(chunks).reshape(len(images), -1)


def _area_matrix(side: int) -> np.ndarray:
    """[smaller side, side]: each row averages the stretch that an output covers."""
    small = min(side, _PIXEL_SIDE)
    edges = np.arange(small + 1) * (side / small)
    cells = np.arange(side)
    begin = np.maximum(edges[:-1, None], cells[None, :])
    end = np.minimum(edges[1:, None], cells[None, :] + 1)
    return np.clip(end - begin, 0.0, None) * (small / side)


def _total_variance(images: np.ndarray) -> float:
    """Unbiased variance of each pixel, summed; the sums are exact integers."""
    total = np.zeros(images.shape[1:], np.int64)
    squares = np.zeros(images.shape[1:], np.int64)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK].astype(np.int64)
        total += chunk.sum(axis=0)
        squares += (chunk * chunk).sum(axis=0)
    count = len(images)
    scatter = squares - total.astype(np.float64) ** 2 / count
    return float(scatter.sum() / (count - 1))


def _check(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 2:
        raise UserError(
            "expected at least 2 images, uint8 [count, height, width, channels]; "
            f"got {images.dtype} {list(images.shape)}"
        )
