"""Training of the small classifier that measures samples, and its cache."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from multistep_cm.errors import UserError
from multistep_cm.evaluation import augmentation
from multistep_cm.evaluation.features import (
    Classifier,
    Network,
    Params,
    features_and_logits,
    load_classifier,
    save_classifier,
)

OnStep = Callable[[int, int, float], None]

# Part of a cache's fingerprint: raise it when training or the network changes.
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How the classifier is trained. The defaults are for 1,500 8x8 digits.

    Attributes:
      num_steps: optimizer steps.
      batch_size: images a step, drawn in shuffled passes over the data.
      learning_rate: its peak; it rises and falls again over the run.
      weight_decay: decoupled, of Adam.
      dropout: before both dense layers.
      label_smoothing: of the targets.
      shift, rotation, scaling, shear: see `augmentation.warp`.
    """

    num_steps: int = 600
    batch_size: int = 100
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    dropout: float = 0.3
    label_smoothing: float = 0.05
    shift: float = 0.7 / 8
    rotation: float = 0.2
    scaling: float = 0.15
    shear: float = 0.2


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int,
    seed: int = 0,
    settings: TrainingSettings | None = None,
    on_step: OnStep | None = None,
) -> Classifier:
    """Trains a classifier; the same arguments give the same bits on one machine.

    Args:
      images: uint8 [count, height, width, channels].
      labels: integer [count], from 0 to num_classes - 1.
      test_images: the same, never trained on.
      test_labels: their labels.
      num_classes: at least 2.
      seed: of the weights, the order and the augmentation.
      settings: None is `TrainingSettings()`.
      on_step: called with (steps done, of how many, loss) after each step.

    Raises:
      UserError: labels that are missing or outside of the classes, or no images.
    """
    settings = settings or TrainingSettings()
    _check(images, labels, num_classes)
    _check(test_images, test_labels, num_classes)
    network = Network(num_classes, settings.dropout)
    rng = np.random.default_rng(seed)
    params = _initial_params(network, images.shape[1:], rng)
    schedule = optax.cosine_onecycle_schedule(
        settings.num_steps, settings.learning_rate
    )
    optimizer = optax.adamw(schedule, weight_decay=settings.weight_decay)
    step = _make_step(network, optimizer, settings.label_smoothing)
    key = jax.random.key(seed)
    state = (params, optimizer.init(params))
    for i, batch in enumerate(_batches(len(images), settings, rng)):
        warped = augmentation.warp(
            images[batch],
            rng,
            shift=settings.shift,
            rotation=settings.rotation,
            scaling=settings.scaling,
            shear=settings.shear,
        )
        state, loss = step(state, warped, labels[batch], key, np.int32(i))
        if on_step is not None:
            on_step(i + 1, settings.num_steps, float(loss))
    params = jax.tree.map(np.asarray, state[0])
    plain = Classifier(params, num_classes, images.shape[1:], 1.0, 0.0)
    features, _ = features_and_logits(plain, images)
    variance = features.var(axis=0, dtype=np.float64).sum()
    _, logits = features_and_logits(plain, test_images)
    return dataclasses.replace(
        plain,
        feature_scale=float(1.0 / np.sqrt(variance)),
        test_accuracy=float(np.mean(logits.argmax(axis=1) == test_labels)),
    )


def load_or_train(
    path: str | Path,
    images: np.ndarray,
    labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int,
    seed: int = 0,
    settings: TrainingSettings | None = None,
    on_step: OnStep | None = None,
) -> Classifier:
    """The classifier cached in `path` (an .npz), or a new one, then cached there.

    A cache counts only if it was made from the same data, seed and settings. One that
    is stale or damaged is said so in a printed sentence, and made again. The arguments
    are those of `train_classifier`.
    """
    settings = settings or TrainingSettings()
    fingerprint = _fingerprint(
        (images, labels, test_images, test_labels),
        {"version": _VERSION, "num_classes": num_classes, "seed": seed}
        | dataclasses.asdict(settings),
    )
    try:
        cached, made_from = load_classifier(path)
        if made_from == fingerprint:
            return cached
        print(f"{path} was made from other data or settings; training it again")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        print(f"{path} cannot be read ({error}); training it again")
    classifier = train_classifier(
        images,
        labels,
        test_images,
        test_labels,
        num_classes,
        seed,
        settings,
        on_step,
    )
    save_classifier(path, classifier, fingerprint)
    return classifier


def _make_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    smoothing: float,
) -> Callable[..., tuple[Any, jax.Array]]:
    def loss_of(
        params: Params, images: jax.Array, labels: jax.Array, key: jax.Array
    ) -> jax.Array:
        _, logits = network.apply(
            {"params": params}, images, train=True, rngs={"dropout": key}
        )
        one_hot = jax.nn.one_hot(labels, network.num_classes)
        targets = optax.smooth_labels(one_hot, smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean()

    @jax.jit
    def step(
        state: tuple[Params, Any],
        images: jax.Array,
        labels: jax.Array,
        key: jax.Array,
        i: jax.Array,
    ) -> tuple[tuple[Params, Any], jax.Array]:
        params, optimizer_state = state
        key = jax.random.fold_in(key, i)
        loss, gradient = jax.value_and_grad(loss_of)(params, images, labels, key)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), loss

    return step


def _initial_params(
    network: Network, image_shape: tuple[int, ...], rng: np.random.Generator
) -> Params:
    """He-normal kernels, drawn by numpy: compiling Flax's own takes seconds longer."""
    example = jax.ShapeDtypeStruct((1, *image_shape), np.uint8)
    shapes = jax.eval_shape(network.init, jax.random.key(0), example)["params"]

    def draw(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            deviation = np.sqrt(2.0 / np.prod(shape.shape[:-1]))
            return (deviation * rng.standard_normal(shape.shape)).astype(np.float32)
        return np.full(shape.shape, name == "scale", np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _batches(
    count: int, settings: TrainingSettings, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """`num_steps` index batches, from shuffled passes joined end to end."""
    size = settings.batch_size
    queue = np.empty(0, np.int64)
    for _ in range(settings.num_steps):
        while len(queue) < size:
            queue = np.concatenate([queue, rng.permutation(count)])
        yield queue[:size]
        queue = queue[size:]


def _check(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    if num_classes < 2:
        raise UserError(
            f"a classifier needs at least 2 classes; data.num_classes is {num_classes}"
        )
    if images.ndim != 4 or images.dtype != np.uint8 or not len(images):
        raise UserError(
            "the classifier needs uint8 images [count, height, width, channels]; "
            f"got {images.dtype} {images.shape}"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(
            f"the classifier needs one integer label for each of {len(images)} "
            f"images; got {labels.dtype} {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"labels go from {labels.min()} to {labels.max()}, but data.num_classes "
            f"is {num_classes}, so they must lie in 0..{num_classes - 1}"
        )


def _fingerprint(arrays: tuple[np.ndarray, ...], settings: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype.kind}{array.shape}".encode())
        plain = array if array.dtype == np.uint8 else array.astype(np.int64)
        digest.update(plain.tobytes())
    return digest.hexdigest()
