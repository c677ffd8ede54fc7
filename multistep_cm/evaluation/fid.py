"""The FID contract: what `fid` and its companions in evaluation.json mean, exactly.

Images: uint8. Samples are rounded to the nearest level before anything sees them;
  real images are those of the training split, decoded, cropped and resized as in
  training, each once, not mirrored. Grey images are repeated to three channels.
Counts: `num_images` samples (50,000 by default for ImageNet; more than 2048 at least),
  classes in turn. Compare only numbers of equal counts: the bias falls with 1/count.
Resize: inside the network, to 299x299 by TensorFlow 1's bilinear: no antialiasing, no
  half-pixel offset, in float32; then (x - 128) / 128.
Weights: the Inception-v3 graph of 2015-12-05 and nothing else (`inception_weights.py`
  checks the sha256), in float32 at full precision.
Statistics: mean and unbiased covariance in float64, one pass, merged over devices and
  hosts.
fid: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) of pool_3, 2048 features, by symmetric
  eigenvalues (`frechet.py`), nothing added to the diagonal.
sfid: the same of the first seven channels of mixed_6/conv, 17 x 17 x 7 = 2023 numbers.
inception_score: of the logits without bias, the mean over splits of 5000 in order.
precision, recall: of pool_3, k = 3 (`manifold.py`), all samples against the images that
  the reference holds.
Reference: the whole training split, or an .npz as the ADM evaluator reads it: `mu`,
  `sigma`, and where they are there `mu_s`, `sigma_s` and `arr_0` (images). What a file
  lacks is left out of the results. In ours `arr_0` holds 10,000 images of the split at
  equal distances (all, where there are no more), and `num_images` says the count.

These are the definitions of the ADM evaluator (Dhariwal and Nichol 2021). It measures
distances for precision and recall in float16 where they are finite; here it is float32.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from multistep_cm.errors import UserError
from multistep_cm.evaluation import npz
from multistep_cm.evaluation.activations import (
    Activations,
    Extractor,
    Read,
    activations,
)
from multistep_cm.evaluation.frechet import Moments, frechet_distance
from multistep_cm.evaluation.inception import NUM_FEATURES, NUM_SPATIAL
from multistep_cm.evaluation.manifold import precision_and_recall

KEPT_IMAGES = 10_000
"""Real images that a reference keeps, for precision and recall."""

Report = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class FidReference:
    """What samples are compared with.

    Attributes:
      pool: moments of the real images' 2048 features.
      spatial: those of their spatial features; None where a file lacks them.
      images: real images for precision and recall, uint8; None where a file lacks them.
      count: real images that the moments are of; None where a file does not say.
      source: where all of this comes from, for the results.
      features: those of the images, float32 [number, 2048], once they are known.
    """

    pool: Moments
    spatial: Moments | None
    images: np.ndarray | None
    count: int | None
    source: str
    features: np.ndarray | None = None


def measure_reference(
    extractor: Extractor, read: Read, count: int, source: str, report: Report
) -> FidReference:
    """The reference of real images 0 to count - 1; every process must call it.

    Their features are kept, but not the images: see `kept_indices`. Raises UserError,
    before anything is computed, where they are too few.
    """
    check_count(count, "real images")
    found = activations(extractor, read, count, kept_indices(count), report)
    return FidReference(found.pool, found.spatial, None, count, source, found.kept)


def with_features(
    extractor: Extractor, reference: FidReference, report: Report
) -> FidReference:
    """The same after its images, if it has any, have passed through the network."""
    images = reference.images
    if images is None:
        return reference
    every, read = np.arange(len(images)), images.__getitem__
    features = activations(extractor, read, len(images), every, report).kept
    return dataclasses.replace(reference, features=features)


def kept_indices(count: int) -> np.ndarray:
    """Which of `count` images a reference keeps: at equal distances, in order."""
    kept = min(count, KEPT_IMAGES)
    return np.arange(kept, dtype=np.int64) * count // kept


def check_count(count: int, what: str, option: str = "") -> None:
    """UserError unless so many images give a covariance of full rank."""
    if count <= NUM_FEATURES:
        raise UserError(
            f"there are {count} {what}, but FID needs more than {NUM_FEATURES}, one "
            f"for each feature of its covariance{option}"
        )


@dataclasses.dataclass(frozen=True)
class FidMeter:
    """Measures samples against one reference.

    Attributes:
      extractor: the FID network.
      reference: the real images.
      weights_sha256: of the network's weight file.
    """

    extractor: Extractor
    reference: FidReference
    weights_sha256: str

    def measure(self, images: np.ndarray, report: Report) -> dict[str, Any]:
        """`fid` and its companions of uint8 images [count, height, width, channels].

        All processes hold the same images and must call this. `report` is called with
        the number of images done. Raises UserError for too few images.
        """
        check_count(len(images), "samples")
        keep = np.arange(0 if self.reference.features is None else len(images))
        found = activations(
            self.extractor, images.__getitem__, len(images), keep, report
        )
        return self._compare(found) | {
            "fid_reference": self.reference.source,
            "fid_reference_images": self.reference.count,
            "inception_sha256": self.weights_sha256,
        }

    def _compare(self, found: Activations) -> dict[str, float | None]:
        real = self.reference
        sfid = precision = recall = None
        if real.spatial is not None:
            sfid = frechet_distance(found.spatial, real.spatial)
        if real.features is not None:
            precision, recall = precision_and_recall(
                real.features, found.kept, self.extractor.mesh
            )
        return {
            "fid": frechet_distance(found.pool, real.pool),
            "sfid": sfid,
            "inception_score": found.inception_score,
            "precision": precision,
            "recall": recall,
        }


def write_reference(path: str | Path, reference: FidReference) -> Path:
    """Writes an .npz that `read_reference` and the ADM evaluator read."""
    arrays = {
        "mu": reference.pool.mean,
        "sigma": reference.pool.covariance,
        "num_images": np.array(reference.count),
    }
    if reference.spatial is not None:
        arrays["mu_s"] = reference.spatial.mean
        arrays["sigma_s"] = reference.spatial.covariance
    if reference.images is not None:
        arrays["arr_0"] = reference.images
    return npz.write_arrays(path, arrays)


def read_reference(path: str | Path, image_size: int) -> FidReference:
    """Reads statistics as this package, the ADM evaluator or pytorch-fid keep them.

    Args:
      path: an .npz with `mu` [2048] and `sigma` [2048, 2048] at least.
      image_size: side of the images that will be compared with it.

    Raises:
      UserError: no such file, or arrays of another size, dtype or layout.
    """
    path = Path(path)
    try:
        arrays = npz.read_arrays(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; name an .npz of reference statistics, or make one "
            "with --write_reference"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable .npz file: {error}") from error
    count = _count(path, arrays)
    spatial = None
    if "mu_s" in arrays or "sigma_s" in arrays:
        spatial = _moments(path, arrays, "_s", NUM_SPATIAL, count)
    return FidReference(
        pool=_moments(path, arrays, "", NUM_FEATURES, count),
        spatial=spatial,
        images=_images(path, arrays, image_size),
        count=count,
        source=f"{path.name} (sha256 {digest})",
    )


def _count(path: Path, arrays: dict[str, np.ndarray]) -> int | None:
    if "num_images" not in arrays:
        return None
    value = arrays["num_images"]
    if value.shape != () or value.dtype.kind not in "iu":
        raise UserError(
            f"{path}: num_images is {value.dtype} {list(value.shape)}, expected one "
            "integer"
        )
    check_count(int(value), f"real images behind {path}")
    return int(value)


def _moments(
    path: Path,
    arrays: dict[str, np.ndarray],
    suffix: str,
    dimension: int,
    count: int | None,
) -> Moments:
    found = []
    for name, shape in (
        (f"mu{suffix}", (dimension,)),
        (f"sigma{suffix}", (dimension, dimension)),
    ):
        if name not in arrays:
            raise UserError(
                f"{path} holds {sorted(arrays)} but no {name!r}: expected the "
                "statistics 'mu' and 'sigma' of a reference, as --write_reference "
                "and the ADM evaluator's reference files have them"
            )
        array = arrays[name]
        if array.shape != shape or array.dtype.kind != "f":
            raise UserError(
                f"{path}: {name} is {array.dtype} {list(array.shape)}, expected floats "
                f"{list(shape)}: the statistics are of another network or layout"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} holds NaN or infinity")
        found.append(array)
    mean, covariance = found
    scale = np.abs(np.diagonal(covariance)).max()
    is_symmetric = np.allclose(covariance, covariance.T, rtol=0, atol=1e-5 * scale)
    if not is_symmetric or np.diagonal(covariance).min() < 0:
        raise UserError(f"{path}: sigma{suffix} is no covariance")
    # Who keeps no count is believed to have had enough images.
    return Moments.of_statistics(mean, covariance, count or dimension + 1)


def _images(
    path: Path, arrays: dict[str, np.ndarray], image_size: int
) -> np.ndarray | None:
    images = arrays.get("arr_0")
    if images is None:
        return None
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UserError(
            f"{path}: arr_0 is {images.dtype} {list(images.shape)}, expected images "
            "uint8 [count, height, width, channels]"
        )
    if images.shape[1:3] != (image_size, image_size) or images.shape[3] not in (1, 3):
        raise UserError(
            f"{path} is the reference of images {list(images.shape[1:])}, but the "
            f"samples are {image_size}x{image_size}"
        )
    return images
