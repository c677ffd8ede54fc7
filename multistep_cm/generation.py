"""Images from parameters: one compiled sampler, batches of any number of images.

Image i of a seed starts from the same noise whatever the batch size, the mesh, the
sampler or the model, so grids of different models can be compared image by image.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm import factory
from multistep_cm.data.sources import open_source
from multistep_cm.diffusion import samplers
from multistep_cm.diffusion.guidance import ALWAYS, Interval, guided_denoiser
from multistep_cm.diffusion.parameterization import Conditioning
from multistep_cm.diffusion.x_variance import measure_x_variance, table_x_variance
from multistep_cm.errors import UserError
from multistep_cm.losses.signature import Params, Predict
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
    _check_scale(config, scale)
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


def _check_scale(config: ConfigDict, scale: float) -> None:
    """Raise UserError for guidance that the model of this config cannot follow."""
    if not scale >= 0:
        raise UserError(f"guidance_scale is {scale}, expected at least 0")
    known = config.consistency.guidance_range
    if known:
        if not known[0] <= scale <= known[1]:
            raise UserError(
                f"guidance_scale is {scale}, but this student learned the scales from "
                f"{known[0]:g} to {known[1]:g} (consistency.guidance_range)"
            )
        return
    if not scale:
        return
    data, training = config.data, config.training
    if not data.num_classes and data.text == "none":
        raise UserError(f"guidance_scale is {scale}, but the model has no classes")
    for kind, is_known, dropout in (
        ("class", data.num_classes, "label_dropout"),
        ("caption", data.text != "none", "caption_dropout"),
    ):
        if is_known and not training[dropout]:
            raise UserError(
                f"guidance_scale is {scale}, but the model was trained with "
                f"training.{dropout} = 0: it knows no prediction without a {kind}"
            )


Wanted: TypeAlias = np.ndarray | Mapping[str, np.ndarray]
"""What images are to show: labels [n], or the network's conditioning by name, [n, ..],
such as the `text` and `text_mask` of captions."""


def num_wanted(wanted: Wanted) -> int:
    """How many images."""
    return len(jax.tree.leaves(wanted)[0])


def default_wanted(config: ConfigDict, num_images: int) -> Wanted:
    """All classes in turn; of a model of captions, those of the evaluation split.

    Raises UserError when these captions cannot be read.
    """
    data = config.data
    labels = balanced_labels(num_images, data.num_classes)
    if data.text == "none":
        return labels
    uncached = data.copy_and_resolve_references()
    uncached.cache = False
    source = open_source(uncached, data.evaluation_split)
    examples = source.read(np.arange(num_images) % len(source))
    return {key: examples[key] for key in ("label", "text", "text_mask")}


@dataclasses.dataclass(frozen=True)
class Generator:
    """A compiled sampler: call it with parameters and what is wanted.

    Attributes:
        config: of the run that the parameters come from.
        options: how it samples.
        mesh: batches are split over it.
        batch_size: images of one call of the program.
        program: `(params, keys [batch], wanted [batch]) -> uint8 [batch, ...]`.
    """

    config: ConfigDict
    options: SamplingOptions
    mesh: Mesh
    batch_size: int
    program: jax.stages.Compiled

    def __call__(
        self,
        params: Params,
        wanted: Wanted,
        seed: int,
        report: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        """One image for each that is wanted, on this host.

        uint8 [n, height, width, channels].

        `report` is called with the number of images done after each batch. The last
        batch is filled up and cut, so that one compilation serves all.
        """
        seed_key = jax.random.key(seed)
        number = num_wanted(wanted)
        images = []
        for start in range(0, number, self.batch_size):
            indices = np.arange(start, start + self.batch_size)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(seed_key, indices)
            rows = np.minimum(indices, number - 1)
            part = jax.tree.map(lambda leaf, rows=rows: leaf[rows], wanted)
            keys, part = replicate((keys, part), self.mesh)
            images.append(np.asarray(self.program(params, keys, part)))
            report(min(start + self.batch_size, number))
        return np.concatenate(images)[:number]


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
        lambda params, images, wanted: measure_x_variance(
            lambda z_t, t, cond: predict(params, z_t, t, cond, None),
            schedule,
            scale_images(images, data.range),
            conditioning(config, options, wanted),
            jax.random.key(0),
            times,
            config.sampling.eta,
        )
    )(params, examples.pop("image"), examples)
    # The sampler holds them as constants, which must be whole in every process.
    return table_x_variance(times, jnp.asarray(to_host(values)))


def conditioning(
    config: ConfigDict, options: SamplingOptions, wanted: Any
) -> dict[str, jax.Array]:
    """What the network is told of `wanted`: labels, or a mapping; inside `jit`."""
    told = dict(wanted) if isinstance(wanted, Mapping) else {"label": wanted}
    number = told["label"].shape[0]
    if not config.data.num_classes:
        del told["label"]
    if config.consistency.guidance_range:
        told["guidance"] = jnp.full(number, options.guidance_scale)
    return told


def make_denoise(
    config: ConfigDict, options: SamplingOptions, predict: Predict
) -> Callable[[Params, jax.Array, jax.Array, Conditioning], jax.Array]:
    """The network as the options guide it: `(params, z_t, t, cond) -> x_hat`.

    A student that was told its scale makes the guided image in one call by itself.
    """
    told = bool(config.consistency.guidance_range)

    def denoise(
        params: Params, z_t: jax.Array, t: jax.Array, cond: Conditioning
    ) -> jax.Array:
        denoiser = guided_denoiser(
            lambda z_t, t, cond: predict(params, z_t, t, cond, None),
            0.0 if told else options.guidance_scale,
            null_label=config.data.num_classes,
            interval=options.guidance_interval,
        )
        return denoiser(z_t, t, cond)

    return denoise


Generate: TypeAlias = Callable[[Params, jax.Array, Any], jax.Array]
"""`(params, keys [batch], wanted [batch]) -> uint8 [batch, height, width, channels]`.

`wanted` is as `Wanted`. Image i is a function of `keys[i]` and what is wanted of it: it
does not depend on the batch."""


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
    denoise = make_denoise(config, options, predict)

    def generate(params: Params, keys: jax.Array, wanted: Any) -> jax.Array:
        z_1 = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        z_0 = samplers.sample(
            functools.partial(denoise, params),
            schedule,
            place(z_1),
            options.num_steps,
            options.method,
            cond=conditioning(config, options, wanted),
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
    texts = factory.text_shapes(config.data, (batch_size,))
    wanted = {"label": labels, **texts} if texts else labels
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    # The images come back whole on every device: every process can read all of them.
    jitted = jax.jit(
        generate, in_shardings=(shardings, whole, whole), out_shardings=whole
    )
    program = jitted.lower(params, keys, wanted).compile()
    wait_for_all("compiled the sampler")
    return Generator(config, options, mesh, batch_size, program)


def balanced_labels(num_images: int, num_classes: int) -> np.ndarray:
    """0, 1, .., num_classes - 1, 0, 1, ..; zeros for a model without classes."""
    return np.arange(num_images, dtype=np.int32) % max(num_classes, 1)
