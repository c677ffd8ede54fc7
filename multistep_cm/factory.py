"""From a config to the values that train and sample: schedule, network, predictor."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from multistep_cm.diffusion import schedules
from multistep_cm.diffusion.parameterization import Conditioning, Prediction, to_x
from multistep_cm.errors import UserError
from multistep_cm.losses.signature import Params, Predict
from multistep_cm.models import build
from multistep_cm.models.level import Ready


def make_schedule(config: ConfigDict) -> schedules.Schedule:
    """The schedule of `diffusion.*`; UserError when its values make none."""
    diffusion, size = config.diffusion, config.data.image_size
    ends = (diffusion.logsnr_min, diffusion.logsnr_max)
    try:
        if diffusion.schedule == "cosine":
            return schedules.cosine(*ends)
        if diffusion.schedule == "shifted_cosine":
            return schedules.shifted_cosine(diffusion.noise_low, size, *ends)
        low, high = diffusion.noise_low, diffusion.noise_high
        return schedules.interpolated_cosine(low, high, size, *ends)
    except ValueError as error:
        raise UserError(f"config keys diffusion.*: {error}") from error


def make_network(config: ConfigDict, ready: Ready | None = None) -> nn.Module:
    """The network of `model.*` for the images of `data.*`.

    `ready` is applied to the parameters of each block right before it runs.
    """
    data = config.data
    return build.build_network(
        config.model,
        data.channels,
        data.num_classes,
        ready,
        data.text,
        is_guided=bool(config.consistency.guidance_range),
    )


def example_inputs(
    config: ConfigDict, batch: int = 1
) -> tuple[jax.Array, jax.Array, Mapping[str, jax.Array]]:
    """Zeros in the shapes that the network takes: (z_t, t, cond)."""
    size, channels = config.data.image_size, config.data.channels
    cond = {}
    if config.data.num_classes:
        cond["label"] = jnp.zeros(batch, jnp.int32)
    for key, like in text_shapes(config.data, (batch,)).items():
        cond[key] = jnp.zeros(like.shape, like.dtype)
    if config.consistency.guidance_range:
        cond["guidance"] = jnp.zeros(batch)
    return jnp.zeros((batch, size, size, channels)), jnp.zeros(batch), cond


def text_shapes(
    data: ConfigDict, batch: tuple[Any, ...]
) -> dict[str, jax.ShapeDtypeStruct]:
    """What a batch of captions is to the network of `data.*`; {} without captions.

    `text` is uint8 [.., length], bytes, or float16 [.., length, width], embeddings;
    `text_mask` is bool [.., length], True where there is something.
    """
    if data.text == "none":
        return {}
    length = (*batch, data.text_length)
    is_bytes = data.text == "bytes"
    shape = length if is_bytes else (*length, data.text_width)
    dtype = jnp.uint8 if is_bytes else jnp.float16
    return {
        "text": jax.ShapeDtypeStruct(shape, dtype),
        "text_mask": jax.ShapeDtypeStruct(length, jnp.bool_),
    }


def init_params(network: nn.Module, config: ConfigDict, key: jax.Array) -> Params:
    """Fresh float32 parameters."""
    return _init_params(network, key, *example_inputs(config))


@functools.partial(jax.jit, static_argnames="network")
def _init_params(
    network: nn.Module,
    key: jax.Array,
    z_t: jax.Array,
    t: jax.Array,
    cond: Mapping[str, jax.Array],
) -> Params:
    """Traced once a process, though several ask: for shapes first, then for values."""
    return network.init(key, z_t, t, cond, train=False)["params"]


def abstract_params(network: nn.Module, config: ConfigDict) -> Params:
    """Shapes and dtypes of the parameters, nothing allocated."""
    return jax.eval_shape(
        lambda key: init_params(network, config, key), jax.random.key(0)
    )


def make_predict(
    network: nn.Module, schedule: schedules.Schedule, prediction: Prediction
) -> Predict:
    """The network as `(params, z_t, t, cond, dropout_key) -> x_hat`."""

    def predict(
        params: Params,
        z_t: jax.Array,
        t: jax.Array,
        cond: Conditioning,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        train = dropout_key is not None
        rngs: dict[str, Any] = {"dropout": dropout_key} if train else {}
        inputs = (z_t, t, cond)
        output: Any = network.apply({"params": params}, *inputs, train=train, rngs=rngs)
        return to_x(output, z_t, schedule.logsnr(t), prediction)

    return predict
