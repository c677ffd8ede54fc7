"""A network of two parameters that remembers how it was called."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multistep_cm.diffusion.parameterization import Conditioning, per_example
from multistep_cm.losses.signature import Loss, Predict

SHAPE = (4, 4, 1)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "z_t", "t", "dropout_key"],
    meta_fields=[],
)
@dataclasses.dataclass
class Call:
    """The arguments of one call."""

    params: dict[str, Any]
    z_t: jax.Array
    t: jax.Array
    dropout_key: jax.Array | None


@dataclasses.dataclass
class Recorder:
    """`tanh(a z + b t)` as a `Predict`."""

    calls: list[Call] = dataclasses.field(default_factory=list)

    def __call__(
        self,
        params: dict[str, Any],
        z_t: jax.Array,
        t: jax.Array,
        cond: Conditioning,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        self.calls.append(Call(params, z_t, t, dropout_key))
        return jnp.tanh(params["a"] * z_t + params["b"] * per_example(t, z_t))


def run_recorded(
    make_loss: Callable[[Predict], Loss], size: int, student: Any, frozen: Any
) -> tuple[jax.Array, dict[str, jax.Array], list[Call]]:
    """One compiled evaluation: loss, metrics, and every call of the network."""

    @jax.jit
    def run(batch: Any, keys: jax.Array, student: Any, frozen: Any) -> Any:
        predict = Recorder()
        value, metrics = make_loss(predict)(student, batch, keys, jnp.int32(0), frozen)
        return value, metrics, predict.calls

    return run(make_batch(size), make_keys(size), student, frozen)


def numpy_network(params: dict[str, Any], z_t: Any, t: Any) -> np.ndarray:
    """The same function in numpy float64; `t` broadcasts against `z_t`."""
    a, b = (float(params[name]) for name in "ab")
    return np.tanh(a * np.asarray(z_t, np.float64) + b * np.asarray(t, np.float64))


def parameters(a: float, b: float) -> dict[str, jax.Array]:
    return {"a": jnp.asarray(a, float), "b": jnp.asarray(b, float)}


def make_batch(size: int, seed: int = 0) -> dict[str, Any]:
    x = np.random.default_rng(seed).uniform(-1, 1, size=(size, *SHAPE))
    return {"image": jnp.asarray(x, float), "cond": {}}


def make_keys(size: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), size)
