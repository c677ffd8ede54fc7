"""Images from parameters: one compiled sampler, batches of any number of images.

Image i of a seed starts from the same noise whatever the batch size, the mesh, the
sampler or the model, so grids of different models can be compared image by image.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm import factory
from multistep_cm.data.sources import open_source
from multistep_cm.diffusion import samplers
from multistep_cm.diffusion.guidance import ALWAYS, Interval, guided_denoiser
from multistep_cm.diffusion.x_variance import measure_x_variance, table_x_variance
from multistep_cm.errors import UserError
from multistep_cm.losses.signature import Params
from multistep_cm.sharding.agreement import wait_for_all
from multistep_cm.sharding.distributed import to_host
from multistep_cm.sharding.mesh import (
    batch_sharding,
    data_parallel_size,
    replicate,
    replicated,
)
from multistep_cm.sharding.rules import place_abstract
from multistep_cm.training.methods import METHODS
from multistep_cm.training.step import scale_images, unscale_images

MEASURED_EXAMPLES = 512
"""Training images on which x_var is measured."""


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How to sample: method, number of steps, strength and times of guidance, x_var."""

    method: samplers.Method
    num_steps: int
    guidance_scale: float = 0.0
    x_variance: str = "analytic"
    guidance_interval: Interval = ALWAYS

    @property
    def network_calls(self) -> int:
        """Network calls for one image; guidance doubles the batch of those guided."""
        return samplers.network_calls(self.method, self.num_steps)


def sampling_options(
    config: ConfigDict,
    method: str | None = None,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    x_variance: str | None = None,
) -> SamplingOptions:
    """The config's way to sample, or what is asked for instead.

    Raises UserError for an unknown method, for a step count or method that a student
    was not trained for, and for guidance of a model that knows no classes, or nothing
    but classes.
    """
    sampling = config.sampling
    scale = sampling.guidance_scale if guidance_scale is None else guidance_scale
    interval = sampling.guidance_interval
    if not scale >= 0:
        raise UserError(f"guidance_scale is {scale}, expected at least 0")
    if scale and not config.data.num_classes:
        raise UserError(f"guidance_scale is {scale}, but the model has no classes")
    if scale and not config.training.label_dropout:
        raise UserError(
            f"guidance_scale is {scale}, but the model was trained with "
            "training.label_dropout = 0: it knows no prediction without a class"
        )
    known = get_args(samplers.Method)
    if method is not None and method not in known:
        raise UserError(f"sampler is {method!r}, expected: {', '.join(known)}")
    if not METHODS[config.method].is_student:
        num_steps = sampling.num_steps if num_steps is None else num_steps
        if num_steps < 1:
            raise UserError(f"num_steps is {num_steps}, expected at least 1")
        chosen = cast(samplers.Method, method or sampling.method)
        x_variance = x_variance or sampling.x_variance
        return SamplingOptions(chosen, num_steps, scale, x_variance, interval)
    trained = config.consistency.student_steps
    if num_steps not in (None, trained):
        raise UserError(
            f"num_steps is {num_steps}, but this student was trained for "
            f"{trained}: train one with --config.consistency.student_steps={num_steps}"
        )
    if method not in (None, "ddim"):
        raise UserError(
            f"sampler is {method!r}, but a student jumps whole segments by algorithm "
            "2, which is 'ddim'"
        )
    return SamplingOptions("ddim", trained, scale, guidance_interval=interval)


@dataclasses.dataclass(frozen=True)
class Generator:
    """A compiled sampler: call it with parameters and labels.

    Attributes:
        config: of the run that the parameters come from.
        options: how it samples.
        mesh: batches are split over it.
        batch_size: images of one call of the program.
        program: `(params, keys [batch], labels [batch]) -> uint8 [batch, ...]`.
    """

    config: ConfigDict
    options: SamplingOptions
    mesh: Mesh
    batch_size: int
    program: jax.stages.Compiled

    def __call__(
        self,
        params: Params,
        labels: np.ndarray,
        seed: int,
        report: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        """One image for every label: uint8 [n, height, width, channels], on this host.

        `report` is called with the number of images done after each batch. The last
        batch is filled up and cut, so that one compilation serves all.
        """
        seed_key = jax.random.key(seed)
        last = len(labels) - 1
        images = []
        for start in range(0, len(labels), self.batch_size):
            indices = np.arange(start, start + self.batch_size)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(seed_key, indices)
            wanted = labels[np.minimum(indices, last)]
            keys, wanted = replicate((keys, wanted), self.mesh)
            images.append(np.asarray(self.program(params, keys, wanted)))
            report(min(start + self.batch_size, len(labels)))
        return np.concatenate(images)[: len(labels)]


def measured_x_variance(
    config: ConfigDict, options: SamplingOptions, params: Params
) -> samplers.XVariance | None:
    """x_var of aDDIM measured on training images, if the options want that.

    None, the analytic form, in all other cases. Deterministic.
    """
    data = config.data
    if options.method != "addim" or options.x_variance != "measured":
        return None
    source = open_source(data, data.train_split)
    examples = source.read(np.arange(min(MEASURED_EXAMPLES, len(source))))
    schedule = factory.make_schedule(config)
    predict = factory.make_predict(
        factory.make_network(config), schedule, config.diffusion.prediction
    )
    times = samplers.time_grid(schedule, options.num_steps)[:-1]
    values = jax.jit(
        lambda params, images, labels: measure_x_variance(
            lambda z_t, t, cond: predict(params, z_t, t, cond, None),
            schedule,
            scale_images(images, data.range),
            {"label": labels} if data.num_classes else {},
            jax.random.key(0),
            times,
            config.sampling.eta,
        )
    )(params, examples["image"], examples["label"])
    # The sampler holds them as constants, which must be whole in every process.
    return table_x_variance(times, jnp.asarray(to_host(values)))


Generate: TypeAlias = Callable[[Params, jax.Array, jax.Array], jax.Array]
"""`(params, keys [batch], labels [batch]) -> uint8 [batch, height, width, channels]`.

Image i is a function of `keys[i]` and `labels[i]`: it does not depend on the batch."""


def make_generate(
    config: ConfigDict,
    options: SamplingOptions,
    x_variance: samplers.XVariance | None = None,
    place: Callable[[jax.Array], jax.Array] = lambda z_1: z_1,
) -> Generate:
    """The whole sampler as a function to be compiled or exported.

    `x_variance` is what aDDIM puts back, from `measured_x_variance`; None: analytic.
    `place` is applied to the starting noise, to say where each part of it lives.
    """
    schedule = factory.make_schedule(config)
    predict = factory.make_predict(
        factory.make_network(config), schedule, config.diffusion.prediction
    )
    shape = (config.data.image_size, config.data.image_size, config.data.channels)
    num_classes = config.data.num_classes

    def generate(params: Params, keys: jax.Array, labels: jax.Array) -> jax.Array:
        denoiser = guided_denoiser(
            lambda z_t, t, cond: predict(params, z_t, t, cond, None),
            options.guidance_scale,
            null_label=num_classes,
            interval=options.guidance_interval,
        )
        z_1 = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        z_0 = samplers.sample(
            denoiser,
            schedule,
            place(z_1),
            options.num_steps,
            options.method,
            cond={"label": labels} if num_classes else {},
            key=jax.vmap(jax.random.fold_in, (0, None))(keys, 1),
            x_variance=x_variance,
        )
        return unscale_images(z_0, config.data.range)

    return generate


def compile_generator(
    config: ConfigDict,
    options: SamplingOptions,
    mesh: Mesh,
    batch_size: int,
    x_variance: samplers.XVariance | None = None,
) -> Generator:
    """Compile the whole sampler; `batch_size` is rounded up to fit the mesh.

    `x_variance` is what aDDIM puts back, from `measured_x_variance`; None: analytic.
    """
    split = batch_sharding(mesh)
    generate = make_generate(
        config,
        options,
        x_variance,
        place=lambda z_1: jax.lax.with_sharding_constraint(z_1, split),
    )
    parts = data_parallel_size(mesh)
    batch_size = -(-batch_size // parts) * parts
    whole = replicated(mesh)
    network = factory.make_network(config)
    params = place_abstract(factory.abstract_params(network, config), mesh)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
    labels = jax.ShapeDtypeStruct((batch_size,), np.int32)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    # The images come back whole on every device: every process can read all of them.
    jitted = jax.jit(
        generate, in_shardings=(shardings, whole, whole), out_shardings=whole
    )
    program = jitted.lower(params, keys, labels).compile()
    wait_for_all("compiled the sampler")
    return Generator(config, options, mesh, batch_size, program)


def balanced_labels(num_images: int, num_classes: int) -> np.ndarray:
    """0, 1, .., num_classes - 1, 0, 1, ..; zeros for a model without classes."""
    return np.arange(num_images, dtype=np.int32) % max(num_classes, 1)
