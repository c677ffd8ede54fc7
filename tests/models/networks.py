"""Small networks, inputs and random parameters for the tests of this room."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multistep_cm.models.build import build_network
from multistep_cm.models.mlp import ResidualMLP
from multistep_cm.models.text import TextKind
from multistep_cm.models.trunk import Trunk

SIZE, CHANNELS, CLASSES = 8, 3, 4

SMALL: dict[str, Any] = {
    "name": "unet",
    "channels": (8, 16),
    "blocks": (2, 1),
    "attention_resolutions": (4,),
    "head_dim": 8,
    "mlp_ratio": 2,
    "condition_width": 12,
    "text_width": 12,
    "text_blocks": 1,
    "text_head_dim": 6,
    "dropout": 0.0,
    "dropout_resolutions": (),
    "unrolled_resolutions": (),
    "dtype": "float32",
    "remat": "none",
    "scan_blocks": True,
}

FAST: dict[str, Any] = {"xla_backend_optimization_level": 0}
"""Compiler options: these tests compile much and compute little."""

Inputs = tuple[jax.Array, jax.Array, dict[str, jax.Array]]


def network(
    text: TextKind = "none", is_guided: bool = False, **changes: Any
) -> Trunk | ResidualMLP:
    """The small network with some config keys changed."""
    return build_network(
        SMALL | changes, CHANNELS, CLASSES, text=text, is_guided=is_guided
    )


def inputs(batch: int = 3, seed: int = 0) -> Inputs:
    """(z_t, t, cond) with t = 0 first and t = 1 last."""
    rng = np.random.default_rng(seed)
    z_t = rng.normal(size=(batch, SIZE, SIZE, CHANNELS)).astype(np.float32)
    label = jnp.asarray(rng.integers(CLASSES, size=batch), jnp.int32)
    t = jnp.linspace(0.0, 1.0, batch)
    return jnp.asarray(z_t), t, {"label": label}


def init_shapes(net: Trunk | ResidualMLP, example: Inputs) -> Any:
    """Shapes and dtypes of the parameters."""
    return jax.eval_shape(lambda key: net.init(key, *example), jax.random.key(0))[
        "params"
    ]


def random_params(
    net: Trunk | ResidualMLP, seed: int = 0, example: Inputs | None = None
) -> Any:
    """Parameters drawn at about the size that trained ones have, none of them zero."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = int(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 10
        value = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
        return jnp.asarray(value, leaf.dtype)

    return jax.tree.map(draw, init_shapes(net, example or inputs(1)))
