"""The small classifier whose features measure samples.

Its penultimate layer gives the features of the Fréchet distance. They are divided by
one constant, so that over the training data their variances sum to 1: a distance of
0.03 is then 3 % of the variance of the data. Its answers give the class accuracy.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from multistep_cm.errors import UserError
from multistep_cm.evaluation import npz
from multistep_cm.sharding.agreement import wait_for_all
from multistep_cm.sharding.mesh import (
    batch_sharding,
    data_parallel_size,
    make_mesh,
    replicate,
    replicated,
)

Params = dict[str, Any]

NUM_FEATURES = 64
_FORWARD_BATCH = 256
"""Images of one device."""


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
    classifier: Classifier, images: np.ndarray, mesh: Mesh | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [count, 64], scaled, and logits float32 [count, num_classes].

    Every device computes the program of one: the mesh changes no bit.

    Args:
      classifier: a trained one.
      images: uint8 [count, height, width, channels] of the classifier's image shape.
      mesh: over which batches are split; every process of it must call this, with
        equal arguments. None: one device of this process.

    Raises:
      UserError: images of another shape or dtype.
    """
    if images.shape[1:] != classifier.image_shape or images.dtype != np.uint8:
        raise UserError(
            f"the classifier was trained on uint8 images {classifier.image_shape}; "
            f"got {images.dtype} {images.shape[1:]}"
        )
    if mesh is None:
        sizes = {"data": 1, "fsdp": 1, "tensor": 1}
        mesh = make_mesh(sizes, jax.local_devices()[:1])
    network = Network(classifier.num_classes)
    params = replicate(classifier.params, mesh)
    features = np.empty((len(images), NUM_FEATURES), np.float32)
    logits = np.empty((len(images), classifier.num_classes), np.float32)
    for start, batch in _batches(images, mesh):
        if start == 0 and not batch.is_fully_addressable:
            _forward.lower(network, mesh, params, batch).compile()
            wait_for_all("compiled the classifier")
        outputs = jax.device_get(_forward(network, mesh, params, batch))
        count = min(len(batch), len(images) - start)
        features[start : start + count] = outputs[0][:count]
        logits[start : start + count] = outputs[1][:count]
    return features * np.float32(classifier.feature_scale), logits


def _batches(images: np.ndarray, mesh: Mesh) -> Iterator[tuple[int, jax.Array]]:
    """First index and images, each device's part of one shape: one compilation."""
    split = batch_sharding(mesh)
    size = _FORWARD_BATCH * data_parallel_size(mesh)
    shape = (size, *images.shape[1:])
    for first in range(0, len(images), size):

        def part(where: Any, first: int = first) -> np.ndarray:
            start, stop, _ = where[0].indices(size)
            own = images[first + start : first + stop]
            filled = np.zeros((stop - start, *images.shape[1:]), np.uint8)
            filled[: len(own)] = own
            return filled

        yield first, jax.make_array_from_callback(shape, split, part)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(
    network: Network, mesh: Mesh, params: Params, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Whole on every device, so that every process can read all of it."""
    outputs: Any = network.apply({"params": params}, images)
    return jax.lax.with_sharding_constraint(outputs, replicated(mesh))


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
