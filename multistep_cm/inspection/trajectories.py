"""What a sampler passes through: z_t and x_hat at every network call.

The sampler itself returns its last image only. Here it runs one operation at a time
(without its scan being compiled) on a denoiser that keeps what goes in and comes out,
so what is shown is what `diffusion/samplers.py` does, for every method of it.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm import factory
from multistep_cm.diffusion import samplers
from multistep_cm.diffusion.parameterization import Conditioning
from multistep_cm.generation import (
    SamplingOptions,
    Wanted,
    conditioning,
    make_denoise,
    measured_x_variance,
    num_wanted,
)
from multistep_cm.losses.signature import Params
from multistep_cm.reporting.content import Pictures, Strip
from multistep_cm.sharding.mesh import replicate, replicated
from multistep_cm.training.step import unscale_images

MOST_CALLS = 8
"""Network calls that are shown: a longer trajectory is thinned out evenly."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One network call.

    Attributes:
      t: its time, the same for the whole batch.
      z_t: what the network was given, float32 [batch, height, width, channels].
      x_hat: what it made of that, guidance included.
    """

    t: float
    z_t: np.ndarray
    x_hat: np.ndarray


def record(
    config: ConfigDict,
    options: SamplingOptions,
    params: Params,
    wanted: Wanted,
    seed: int,
    mesh: Mesh,
) -> tuple[list[Call], np.ndarray]:
    """Every network call, and z_0; image i as `generation.Generator` draws it.

    Raises UserError where the x_var of aDDIM cannot be measured.
    """
    schedule = factory.make_schedule(config)
    predict = factory.make_predict(
        factory.make_network(config), schedule, config.diffusion.prediction
    )
    data = config.data
    number = num_wanted(wanted)
    shape = (number, data.image_size, data.image_size, data.channels)
    seed_key = jax.random.key(seed)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(seed_key, np.arange(number))
    z_1 = jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)
    cond = conditioning(config, options, wanted)
    denoise = make_denoise(config, options, predict)
    z_1, t, cond = replicate((z_1, np.ones(number, np.float32), cond), mesh)
    jitted = jax.jit(denoise, out_shardings=replicated(mesh))
    program = jitted.lower(params, z_1, t, cond).compile()
    calls: list[Call] = []

    def recorded(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        with jax.disable_jit(False):
            x_hat: jax.Array = program(params, *replicate((z_t, t), mesh), cond)
        calls.append(Call(float(t[0]), np.asarray(z_t), np.asarray(x_hat)))
        return x_hat

    x_variance = measured_x_variance(config, options, params)
    with jax.disable_jit():
        z_0 = samplers.sample(
            recorded,
            schedule,
            z_1,
            options.num_steps,
            options.method,
            cond=cond,
            key=jax.vmap(jax.random.fold_in, (0, None))(keys, 1),
            x_variance=x_variance,
        )
    return calls, np.asarray(z_0)


def trajectory_pictures(
    calls: Sequence[Call], z_0: np.ndarray, names: Sequence[str], config: ConfigDict
) -> Pictures:
    """Two strips an image: what the network was given, and what it saw in that.

    `names` of the images. Time runs from left to right, and ends with the image.
    """
    number = min(len(calls), MOST_CALLS)
    shown = [
        calls[i] for i in np.linspace(0, len(calls) - 1, number).round().astype(int)
    ]

    def pixels(values: Sequence[np.ndarray], index: int) -> np.ndarray:
        stacked = jnp.stack([value[index] for value in values])
        return np.asarray(unscale_images(stacked, config.data.range))

    strips = []
    for index, name in enumerate(names):
        inputs = pixels([*(call.z_t for call in shown), z_0], index)
        outputs = pixels([call.x_hat for call in shown], index)
        strips += [Strip(f"{name}: z_t", inputs), Strip(f"{name}: x_hat", outputs)]
    plural = "s" if len(calls) > 1 else ""
    some = f", {number} of them shown" if number < len(calls) else ""
    return Pictures(
        f"{len(calls)} network call{plural}{some}: z_t goes into the network, x_hat is "
        "the image that it makes of it; z_t is clipped to the range of the data.",
        [*(f"t={call.t:.2f}" for call in shown), "t=0"],
        strips,
    )
