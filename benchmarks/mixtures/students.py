"""Teachers and students of a mixture: the package's losses in one compiled loop.

The data is drawn anew at every step, so there is no dataset and no use for
`training/loop.py`. Everything else is the package's own: losses, network, optimizer,
moving average.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from multistep_cm import factory
from multistep_cm.config import default_config
from multistep_cm.diffusion import schedules
from multistep_cm.diffusion.parameterization import Conditioning
from multistep_cm.losses.consistency import make_consistency_loss
from multistep_cm.losses.denoising import make_denoising_loss
from multistep_cm.losses.segments import ConsistencyOptions
from multistep_cm.losses.signature import Loss, Params, Predict
from multistep_cm.models.build import build_network
from multistep_cm.training.ema import ema_decay, update_ema
from multistep_cm.training.optimizer import make_optimizer
from multistep_cm.truth import mixtures, presets

SCHEDULE = schedules.cosine()

EXACT: Params = {}
"""The parameters with which `Problem.predict` is the exact posterior mean."""

WIDTH, BLOCKS = 64, 3
"""Of the network."""

SHARPENING = 4.0
"""Factor on the kernels of the hidden layers at the start; see `sharpen`."""

Trainer: TypeAlias = Callable[[Params, jax.Array, Mapping[str, Any]], Params]
"""`(initial parameters, key, frozen) -> averaged parameters`, one compiled run."""

CD_OPTIONS = ConsistencyOptions(
    student_steps=1,  # frozen["student_steps"] takes its place
    teacher_steps_start=16.0,
    teacher_steps_end=64.0,
    anneal_steps=1,  # `fitted` makes it the length of the run
    hop="heun",
    weight="snr_plus_1",
    huber_epsilon=1e-4,
)
CT_OPTIONS = dataclasses.replace(CD_OPTIONS, hop="ddim", huber_epsilon=1.0)
"""Chosen by benchmarks/mixtures/choices.py. CT's targets are draws of the data, whose
mean only a squared norm finds: a norm that is not squared finds the median, which in
one dimension is another point (docs/truth.md)."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A mixture, and a network that is to learn it.

    Attributes:
        name: of the preset.
        mixture: the data, float32.
        predict: the network; with the parameters `EXACT` the exact posterior mean.
        initial: fresh parameters from a key.
    """

    name: str
    mixture: mixtures.Mixture
    predict: Predict
    initial: Callable[[jax.Array], Params]


def make_config(iterations: int, learning_rate: float) -> ConfigDict:
    """The default config with a small MLP and a run of this length."""
    config = default_config()
    model = config.model
    model.name = "mlp"
    model.channels, model.blocks = (WIDTH,), (BLOCKS,)
    model.attention_resolutions = ()
    model.condition_width = 32
    model.scan_blocks = False
    training = config.training
    training.num_steps = iterations
    training.batch_size = 128
    training.learning_rate = learning_rate
    training.ema_decay = 0.99
    return config


def sharpen(params: Params, key: jax.Array) -> Params:
    """Fresh parameters of the MLP made able to tell near points apart from the start.

    Its first layer has no bias at first and a norm behind it, so that it sees only the
    direction of z; here it gets biases. The hidden layers get biases and larger
    kernels. Without this a mode of the ring, a tenth of the data in size, is not
    resolved in the iterations that a laptop has: docs/truth.md.
    """

    def change(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if "'up'" in name and "kernel" in name:
            return SHARPENING * leaf
        if ("'up'" in name or "'widen'" in name) and "bias" in name:
            leaf_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
            return jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
        return leaf

    return jax.tree_util.tree_map_with_path(change, params)


def make_problem(name: str) -> Problem:
    """The preset `name` of `truth/presets.py`, with a network for its points."""
    mixture = presets.PRESETS[name]("float32")
    exact = mixtures.denoiser(mixture, SCHEDULE)
    network = build_network(make_config(1, 1.0).model, image_channels=1, num_classes=0)
    learned = factory.make_predict(network, SCHEDULE, "v")

    def predict(
        params: Params,
        z_t: jax.Array,
        t: jax.Array,
        cond: Conditioning,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        if not params:
            return exact(z_t, t, cond)
        return learned(params, z_t, t, cond, dropout_key)

    def initial(key: jax.Array) -> Params:
        z_t = jnp.zeros((1, mixture.dimension))
        init_key, bias_key = jax.random.split(key)
        fresh = network.init(init_key, z_t, jnp.zeros(1), {})["params"]
        return sharpen(fresh, bias_key)

    return Problem(name, mixture, predict, initial)


def make_trainer(
    loss: Loss, mixture: mixtures.Mixture, iterations: int, learning_rate: float
) -> Trainer:
    """A compiled run of `iterations` steps, each on fresh draws [batch, d] of x.

    The learning rate falls to 0 along a cosine; see `make_config`. The student steps
    are a traced value of `frozen`: one compilation serves every K.
    """
    training = make_config(iterations, learning_rate).training
    optimizer = make_optimizer(training)

    def train(params: Params, key: jax.Array, frozen: Mapping[str, Any]) -> Params:
        def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
            params, ema, optimizer_state = carry
            draw_key, loss_key = jax.random.split(jax.random.fold_in(key, index))
            x = mixtures.draw(mixture, draw_key, training.batch_size)
            keys = jax.random.split(loss_key, training.batch_size)
            batch = {"image": x, "cond": {}}
            gradients, _ = jax.grad(loss, has_aux=True)(
                params, batch, keys, index, frozen
            )
            updates, optimizer_state = optimizer.update(
                gradients, optimizer_state, params
            )
            params = optax.apply_updates(params, updates)
            ema = update_ema(ema, params, ema_decay(index, training.ema_decay))
            return (params, ema, optimizer_state), None

        start = (params, params, optimizer.init(params))
        _, ema, _ = jax.lax.scan(step, start, jnp.arange(iterations))[0]
        return ema

    return jax.jit(train)


def teacher_trainer(
    problem: Problem, iterations: int, learning_rate: float = 3e-3
) -> Trainer:
    """Trains a diffusion model; `frozen` is not read."""
    loss = make_denoising_loss(problem.predict, SCHEDULE)
    return make_trainer(loss, problem.mixture, iterations, learning_rate)


def student_trainer(
    problem: Problem,
    options: ConsistencyOptions,
    distill: bool,
    iterations: int,
    learning_rate: float = 1e-3,
) -> Trainer:
    """Trains a student by CD or CT; `frozen` as `frozen_values` makes it."""
    loss = make_consistency_loss(problem.predict, SCHEDULE, options, distill)
    return make_trainer(loss, problem.mixture, iterations, learning_rate)


def fitted(options: ConsistencyOptions, iterations: int) -> ConsistencyOptions:
    """The options with a grid that is refined until the last iteration."""
    return dataclasses.replace(options, anneal_steps=iterations)


def frozen_values(teacher: Params, student_steps: int) -> dict[str, Any]:
    """What the loss of a student reads: its teacher and its K."""
    return {"teacher_params": teacher, "student_steps": jnp.int32(student_steps)}
