"""What tests of layers share: random parameters, and formulas in numpy, float64."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.models.networks import FAST

RNG = np.random.default_rng(0)
Arrays = dict[str, Any]


def filled(module: nn.Module, *args: Any) -> Arrays:
    """Random parameters of a module, as float64 arrays."""
    shapes = jax.eval_shape(lambda key: module.init(key, *args), jax.random.key(0))
    return jax.tree.map(lambda s: RNG.normal(size=s.shape) * 0.5, shapes["params"])


def run(module: nn.Module, params: Arrays, *args: Any) -> np.ndarray:
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    apply = jax.jit(module.apply, compiler_options=FAST)
    return np.asarray(apply({"params": params}, *args))


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def layer_norm(p: Arrays, x: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def group_norm(p: Arrays, x: np.ndarray, groups: int) -> np.ndarray:
    parts = x.astype(np.float64).reshape(len(x), -1, groups, x.shape[-1] // groups)
    parts = parts - parts.mean((1, 3), keepdims=True)
    parts = parts / np.sqrt((parts**2).mean((1, 3), keepdims=True) + 1e-6)
    return parts.reshape(x.shape) * p["scale"] + p["bias"]
