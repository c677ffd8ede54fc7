"""A run so small that it trains in a second, and the pieces that tests make of it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm import factory
from multistep_cm.config import default_config
from multistep_cm.losses.signature import Params
from multistep_cm.sharding.rules import tree_shardings

TINY: dict[str, Any] = {
    "diffusion.noise_low": 8.0,
    "diffusion.noise_high": 8.0,
    "model.channels": (8,),
    "model.blocks": (1,),
    "model.attention_resolutions": (),
    "model.head_dim": 8,
    "model.condition_width": 16,
    "consistency.student_steps": 2,
    "consistency.teacher_steps_start": 4.0,
    "consistency.teacher_steps_end": 16.0,
    "consistency.anneal_steps": 8,
    "training.num_steps": 8,
    "training.batch_size": 8,
    "training.warmup_steps": 2,
    "training.log_every": 2,
    "training.time_bins": 2,
    "checkpoint.every_steps": 4,
    "sampling.num_steps": 2,
    "sampling.num_previews": 0,
    "evaluation.num_images": 64,
    "evaluation.batch_size": 64,
}

TWO_LEVELS: dict[str, Any] = {
    "model.channels": (8, 16),
    "model.blocks": (2, 2),
    "model.attention_resolutions": (4,),
}

TRANSFORMER: dict[str, Any] = {
    "model.name": "uvit",
    "model.channels": (16,),
    "model.blocks": (2,),
    "model.attention_resolutions": (8,),
}

MLP: dict[str, Any] = {
    "model.name": "mlp",
    "model.channels": (16,),
    "model.blocks": (2,),
}
"""Is traced and compiled in a fraction of the time of a UNet."""


def tiny_config(directory: Path | None = None, **values: Any) -> ConfigDict:
    """The default config, `TINY`, then `values` (with two underscores for a dot)."""
    config = default_config()
    named = {key.replace("__", "."): value for key, value in values.items()}
    config.update_from_flattened_dict({**TINY, **named})
    if directory is not None:
        config.data.directory = str(directory)
    return config


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """Runs train on one device: eight simulated ones wait for each other."""
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: first)
        yield


def flags(config: ConfigDict) -> list[str]:
    """What makes this config from any other on a command line."""
    from multistep_cm.config import flatten

    return [f"--config.{key}={value}" for key, value in flatten(config).items()]


def noisy_params(config: ConfigDict, mesh: Mesh, seed: int) -> Params:
    """Parameters on a mesh, none of them zero as a fresh network's outputs are.

    From numpy: the random numbers of a fresh network take longer to compile than its
    training step.
    """
    rng = np.random.default_rng(seed)
    abstract = factory.abstract_params(factory.make_network(config), config)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == "scale":
            return 1 + 0.1 * noise
        is_kernel = path[-1].key == "kernel"
        return noise * (np.prod(leaf.shape[-2:-1]) ** -0.5 if is_kernel else 0.1)

    drawn = jax.tree_util.tree_map_with_path(draw, abstract)
    return jax.device_put(drawn, tree_shardings(abstract, mesh))


def random_batch(config: ConfigDict, seed: int) -> dict[str, np.ndarray]:
    """uint8 noise and labels in the shapes of the config's batch of one call."""
    rng = np.random.default_rng(seed)
    data, training = config.data, config.training
    shape: tuple[int, ...] = (training.batch_size,)
    if training.steps_per_call > 1:
        shape = (training.steps_per_call, *shape)
    image = (*shape, data.image_size, data.image_size, data.channels)
    return {
        "image": rng.integers(256, size=image, dtype=np.uint8),
        "label": rng.integers(10, size=shape, dtype=np.int32),
    }


def host(tree: Any) -> Any:
    """A copy on the host that donation cannot take away."""
    return jax.tree.map(np.array, tree)


def assert_trees_equal(a: Any, b: Any) -> None:
    """The same structure and the same bits."""
    assert str(jax.tree.structure(a)) == str(jax.tree.structure(b))
    for (path, left), right in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert jnp.asarray(left).dtype == jnp.asarray(right).dtype, name
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right), name)
