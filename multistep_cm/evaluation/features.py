"""The small classifier whose features measure samples.

Its penultimate layer gives the features of the Fréchet distance. They are divided by
one constant, so that over the training data their variances sum to 1: a distance of
0.03 is then 3 % of the variance of the data. Its answers give the class accuracy.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from multistep_cm.errors import UserError
from multistep_cm.evaluation import npz

Params = dict[str, Any]

NUM_FEATURES = 64
_FORWARD_BATCH = 256


class Network(nn.Module):
    """Convolutions that halve the image to 5x5 or less, a mean, two dense layers."""

    num_classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Features [batch, 64] and logits [batch, num_classes] of images in 0..255."""
        # Full precision on every accelerator: these numbers are compared.
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), precision="highest")
        dense = functools.partial(nn.Dense, precision="highest")
        x = images.astype(jnp.float32) / 127.5 - 1.0
        x = nn.silu(nn.GroupNorm(num_groups=8)(conv(32)(x)))
        while max(x.shape[1:3]) > 5:
            x = nn.silu(nn.GroupNorm(num_groups=8)(conv(64, strides=2)(x)))
        x = nn.silu(nn.GroupNorm(num_groups=8)(conv(64)(x)))
        x = x.mean(axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        features = nn.silu(dense(NUM_FEATURES)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(features)
        return features, dense(self.num_classes)(x)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Attributes:
      params: of `Network`, float32.
      num_classes: number of classes.
      image_shape: height, width, channels.
      feature_scale: what features are multiplied with.
      test_accuracy: share of the test images that it names rightly.
    """

    params: Params
    num_classes: int
    image_shape: tuple[int, int, int]
    feature_scale: float
    test_accuracy: float

    @property
    def sha256(self) -> str:
        """Of its parameters: numbers by two classifiers cannot be compared."""
        leaves = flax.traverse_util.flatten_dict(self.params, sep="/")
        digest = hashlib.sha256()
        for name in sorted(leaves):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(leaves[name]).tobytes())
        return digest.hexdigest()


def features_and_logits(
    classifier: Classifier, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [count, 64], scaled, and logits float32 [count, num_classes].

    Args:
      classifier: a trained one.
      images: uint8 [count, height, width, channels] of the classifier's image shape.

    Raises:
      UserError: images of another shape or dtype.
    """
    if images.shape[1:] != classifier.image_shape or images.dtype != np.uint8:
        raise UserError(
            f"the classifier was trained on uint8 images {classifier.image_shape}; "
            f"got {images.dtype} {images.shape[1:]}"
        )
    network = Network(classifier.num_classes)
    features = np.empty((len(images), NUM_FEATURES), np.float32)
    logits = np.empty((len(images), classifier.num_classes), np.float32)
    for start in range(0, len(images), _FORWARD_BATCH):
        batch = images[start : start + _FORWARD_BATCH]
        # One shape, so one compilation.
        padded = np.zeros((_FORWARD_BATCH, *batch.shape[1:]), np.uint8)
        padded[: len(batch)] = batch
        outputs = _forward(network, classifier.params, padded)
        features[start : start + len(batch)] = outputs[0][: len(batch)]
        logits[start : start + len(batch)] = outputs[1][: len(batch)]
    return features * np.float32(classifier.feature_scale), logits


@functools.partial(jax.jit, static_argnums=0)
def _forward(
    network: Network, params: Params, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    outputs: Any = network.apply({"params": params}, images)
    return outputs


def save_classifier(path: str | Path, classifier: Classifier, fingerprint: str) -> None:
    """Writes a classifier to an .npz, with a word on what it was made from."""
    leaves = flax.traverse_util.flatten_dict({"params": classifier.params}, sep="/")
    scalars = {
        "fingerprint": fingerprint,
        "num_classes": classifier.num_classes,
        "image_shape": classifier.image_shape,
        "feature_scale": classifier.feature_scale,
        "test_accuracy": classifier.test_accuracy,
    }
    arrays = {name: np.asarray(value) for name, value in scalars.items()}
    npz.write_arrays(path, leaves | arrays)


def load_classifier(path: str | Path) -> tuple[Classifier, str]:
    """What `save_classifier` wrote: the classifier and its fingerprint.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is damaged or something else.
    """
    arrays = npz.read_arrays(path)
    leaves = {name: a for name, a in arrays.items() if name.startswith("params/")}
    try:
        height, width, channels = arrays["image_shape"].tolist()
        classifier = Classifier(
            params=flax.traverse_util.unflatten_dict(leaves, sep="/")["params"],
            num_classes=int(arrays["num_classes"]),
            image_shape=(height, width, channels),
            feature_scale=float(arrays["feature_scale"]),
            test_accuracy=float(arrays["test_accuracy"]),
        )
        return classifier, str(arrays["fingerprint"])
    except KeyError as error:
        raise ValueError(f"no {error} in it") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"it holds no classifier: {error}") from error
