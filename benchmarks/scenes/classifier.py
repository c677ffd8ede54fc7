"""A network that says what is in a scene: it measures whether captions are followed."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.scenes.truth import Scenes
from multistep_cm.data.builders.scenes import LAYOUTS, NUM_SLOTS
from multistep_cm.files import written_aside
from multistep_cm.models.convolution import Conv3x3
from multistep_cm.models.norms import GroupNorm
from multistep_cm.models.resampling import average_pool

FEATURES = 32
BATCH = 128
STEPS = 1500
LEARNING_RATE = 2e-3

Answers = Mapping[str, np.ndarray]
"""`layout` int [n], `digits` int [n, 3] and `large` int [n, 3]."""


class Network(nn.Module):
    """Convolutions, a layer of features, and an answer for every question."""

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """uint8 images [batch, 16, 16, 1] to logits by question, and features."""
        x = images.astype(jnp.float32) / 127.5 - 1
        for i, channels in enumerate((24, 48, 96)):
            x = Conv3x3(channels, jnp.float32, name=f"conv_{i}")(x)
            x = nn.relu(GroupNorm(jnp.float32, name=f"norm_{i}")(x))
            if i != 1:
                x = average_pool(x)
        x = x.reshape(len(x), -1)
        x = nn.Dropout(0.3, deterministic=not train)(x)
        x = nn.relu(nn.Dense(192, name="wide")(x))
        features = nn.Dense(FEATURES, name="features")(x)
        x = jnp.concatenate([nn.relu(features), x], axis=-1)
        x = nn.Dropout(0.2, deterministic=not train)(x)
        digits = nn.Dense(NUM_SLOTS * 11, name="digits")(x)
        large = nn.Dense(NUM_SLOTS * 2, name="large")(x)
        return {
            "layout": nn.Dense(len(LAYOUTS), name="layout")(x),
            "digits": digits.reshape(-1, NUM_SLOTS, 11),
            "large": large.reshape(-1, NUM_SLOTS, 2),
        }, features


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Trained weights."""

    params: Any

    def read(self, images: np.ndarray) -> tuple[Answers, np.ndarray]:
        """The answers for uint8 images [n, 16, 16, 1], and features [n, 32]."""
        apply = jax.jit(Network().apply)
        parts = []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            filled = np.resize(part, (BATCH, *part.shape[1:]))
            logits, features = apply({"params": self.params}, filled)
            answers = {key: np.argmax(value, -1) for key, value in logits.items()}
            whole = {**answers, "features": np.asarray(features)}
            parts.append({key: value[: len(part)] for key, value in whole.items()})
        joined = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
        return joined, joined.pop("features")


def load_or_train(path: Path, scenes: Scenes, steps: int = STEPS) -> Classifier:
    """The classifier kept in `path`, or a new one, then kept there."""
    network = Network()
    shapes = jax.eval_shape(network.init, jax.random.key(0), scenes.images[:1])
    leaves, structure = jax.tree.flatten(shapes["params"])
    if path.exists():
        with np.load(path) as kept:
            stored = [kept[f"arr_{i}"] for i in range(len(leaves))]
        return Classifier(jax.tree.unflatten(structure, stored))
    params = train_classifier(network, scenes, steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside, aside.open("wb") as file:
        np.savez(file, *jax.tree.leaves(params))
    return Classifier(params)


def train_classifier(network: Network, scenes: Scenes, steps: int) -> Any:
    """Parameters after so many steps of Adam over shuffled batches."""
    optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, LEARNING_RATE))

    def loss(params: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> jax.Array:
        rngs = {"dropout": key}
        logits, _ = network.apply(
            {"params": params}, batch["images"], train=True, rngs=rngs
        )
        cross = optax.softmax_cross_entropy_with_integer_labels
        there = batch["digits"] < 10
        large = cross(logits["large"], batch["large"]) * there
        return (
            cross(logits["layout"], batch["layout"]).mean()
            + cross(logits["digits"], batch["digits"]).mean() * NUM_SLOTS
            + large.mean()
        )

    @jax.jit
    def step(state: Any, batch: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, moments = state
        value, gradient = jax.value_and_grad(loss)(params, batch, key)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    rng = np.random.default_rng(0)
    params = network.init(jax.random.key(0), scenes.images[:1])["params"]
    state = (params, optimizer.init(params))
    order = np.empty(0, np.int64)
    for i in range(steps):
        if len(order) < BATCH:
            order = np.concatenate([order, rng.permutation(len(scenes.images))])
        rows, order = order[:BATCH], order[BATCH:]
        batch = {
            "images": scenes.images[rows],
            "layout": scenes.layout[rows],
            "digits": scenes.digits[rows],
            "large": scenes.large[rows].astype(np.int32),
        }
        state, value = step(state, batch, jax.random.fold_in(jax.random.key(1), i))
        if (i + 1) % 250 == 0:
            print(f"classifier: step {i + 1} of {steps}, loss {value:.3f}", flush=True)
    return jax.tree.map(np.asarray, state[0])
