"""One optimizer step, and several in one dispatch, as one compiled graph.

A step draws times and noise, runs teacher and student, differentiates, accumulates,
clips, updates parameters and their average and counts its metrics. Random numbers come
from `fold_in(seed, step)` and one key per example, so they depend neither on the mesh
nor on how the batch is cut.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm.losses.segments import ConsistencyOptions, num_teacher_steps
from multistep_cm.losses.signature import Batch, Loss, Metrics, Params
from multistep_cm.sharding.mesh import batch_sharding, replicated
from multistep_cm.training.ema import (
    ema_decay,
    more_decays,
    target_decay,
    update_ema,
)
from multistep_cm.training.finite import skip_if_not_finite, updates_made
from multistep_cm.training.optimizer import make_learning_rate
from multistep_cm.training.state import TrainState

RawBatch: TypeAlias = Mapping[str, jax.Array]
"""`{"image": uint8 [batch, height, width, channels], "label": int32 [batch]}`, and
`text` and `text_mask` of captions as `factory.text_shapes` says."""

StepMetrics: TypeAlias = dict[str, jax.Array]
"""loss, grad_norm, learning_rate: float32 scalars; bin_loss, bin_count: [time_bins];
skipped_steps: an int32 scalar, with `training.on_nan=skip` only."""

TrainStep: TypeAlias = Callable[
    [TrainState, RawBatch, Any], tuple[TrainState, StepMetrics]
]


def scale_images(images: jax.Array, limits: tuple[float, float]) -> jax.Array:
    """uint8 0..255 to float32 low..high."""
    low, high = limits
    return low + images.astype(jnp.float32) * ((high - low) / 255.0)


def unscale_images(images: jax.Array, limits: tuple[float, float]) -> jax.Array:
    """Float low..high to uint8 0..255: clipped, then rounded."""
    low, high = limits
    unit = jnp.clip((images - low) / (high - low), 0.0, 1.0)
    return jnp.round(unit * 255.0).astype(jnp.uint8)


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: Mesh,
) -> TrainStep:
    """`(state, batch, frozen) -> (state, metrics)`, to be compiled by `compile_step`.

    With `training.steps_per_call` above 1 the batch has a leading axis of that size and
    so has every metric; the steps run in one scan.
    """
    training = config.training
    sharding = batch_sharding(mesh)
    learning_rate = make_learning_rate(training)

    def one_step(
        state: TrainState, raw: RawBatch, frozen: Params
    ) -> tuple[TrainState, StepMetrics]:
        step_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        batch_size = raw["image"].shape[0]
        keys = jax.random.split(step_key, batch_size)
        keys = jax.lax.with_sharding_constraint(keys, sharding)
        batch, keys = _prepare(raw, keys, config)
        if state.target is not None:
            frozen = {**frozen, "target_params": state.target}
        gradients, metrics = _accumulate(
            loss, training.accumulation, state, batch, keys, frozen
        )
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer, state.params
        )
        params = optax.apply_updates(state.params, updates)
        count = updates_made(state)
        decay = ema_decay(count, training.ema_decay)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            ema=update_ema(state.ema, params, decay),
            more_emas=_update_more(state, params, count, training),
            target=_update_target(state, params, config),
            optimizer=optimizer_state,
            skipped=state.skipped,
        )
        summary = _summarize(metrics, training.time_bins)
        summary["grad_norm"] = optax.tree.norm(gradients)
        # Of the update that is made: the optimizer counts no skipped step.
        summary["learning_rate"] = jnp.float32(learning_rate(count))
        if training.on_nan == "skip":
            return skip_if_not_finite(state, new_state, summary)
        return new_state, summary

    def train_step(
        state: TrainState, raw: RawBatch, frozen: Params
    ) -> tuple[TrainState, StepMetrics]:
        if training.steps_per_call == 1:
            return one_step(state, raw, frozen)
        return jax.lax.scan(
            lambda carry, batch: one_step(carry, batch, frozen), state, raw
        )

    return train_step


def compile_step(
    train_step: TrainStep,
    state: TrainState,
    raw: Mapping[str, Any],
    frozen: Params,
    mesh: Mesh,
) -> jax.stages.Compiled:
    """Compile once for these shapes and shardings; the state is donated, frozen never.

    All arguments may be `jax.ShapeDtypeStruct` with shardings; the metrics come back
    replicated.
    """
    sharding_of = lambda tree: jax.tree.map(lambda leaf: leaf.sharding, tree)  # noqa: E731
    jitted = jax.jit(
        train_step,
        in_shardings=(sharding_of(state), sharding_of(raw), sharding_of(frozen)),
        out_shardings=(sharding_of(state), replicated(mesh)),
        donate_argnums=0,
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jitted.lower(state, raw, frozen)
    return lowered.compile()


def _update_more(
    state: TrainState, params: Params, count: jax.Array, training: ConfigDict
) -> dict[str, Params]:
    """The averages of other decays after this step; `count` updates came before."""
    return {
        name: update_ema(state.more_emas[name], params, ema_decay(count, decay))
        for name, decay in more_decays(training).items()
    }


def _update_target(state: TrainState, params: Params, config: ConfigDict) -> Params:
    """The averaged target after this step; None where the method has none."""
    if state.target is None:
        return None
    options = ConsistencyOptions(**config.consistency)
    decay = target_decay(
        options.target_decay,
        num_teacher_steps(0, options),
        num_teacher_steps(state.step, options),
    )
    return update_ema(state.target, params, decay)


def _prepare(
    raw: RawBatch, keys: jax.Array, config: ConfigDict
) -> tuple[Batch, jax.Array]:
    """Images to their range, labels and captions dropped now and then, scales of
    guidance drawn; fresh keys for the loss."""
    image = scale_images(raw["image"], config.data.range)
    cond = {}
    if config.data.num_classes:
        label_keys, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        drop = jax.vmap(jax.random.uniform)(label_keys) < config.training.label_dropout
        cond["label"] = jnp.where(drop, config.data.num_classes, raw["label"])
    if config.data.text != "none":
        text_keys, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        coins = jax.vmap(jax.random.uniform)(text_keys)
        kept = coins >= config.training.caption_dropout
        cond["text"] = raw["text"]
        cond["text_mask"] = raw["text_mask"] & kept[:, None]
    if config.consistency.guidance_range:
        scale_keys, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        low, high = config.consistency.guidance_range
        unit = jax.vmap(jax.random.uniform)(scale_keys)
        cond["guidance"] = low + (high - low) * unit
    return {"image": image, "cond": cond}, keys


def _accumulate(
    loss: Loss,
    num_microbatches: int,
    state: TrainState,
    batch: Batch,
    keys: jax.Array,
    frozen: Params,
) -> tuple[Params, Metrics]:
    """The mean gradient over the batch, one microbatch in memory at a time."""

    def gradient(part: tuple[Batch, jax.Array]) -> tuple[Params, Metrics]:
        return jax.grad(loss, has_aux=True)(state.params, *part, state.step, frozen)

    if num_microbatches == 1:
        return gradient((batch, keys))

    def cut(leaf: jax.Array) -> jax.Array:
        # Example i goes to microbatch i mod n, so that every device keeps its own.
        rest = leaf.shape[1:]
        return leaf.reshape(-1, num_microbatches, *rest).swapaxes(0, 1)

    def add(total: Params, part: tuple[Batch, jax.Array]) -> tuple[Params, Metrics]:
        gradients, metrics = gradient(part)
        share = jax.tree.map(lambda leaf: leaf / num_microbatches, gradients)
        return jax.tree.map(jnp.add, total, share), metrics

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    gradients, metrics = jax.lax.scan(add, zeros, jax.tree.map(cut, (batch, keys)))
    return gradients, jax.tree.map(jnp.ravel, metrics)


def _summarize(metrics: Metrics, num_bins: int) -> StepMetrics:
    """The mean loss, and its sum and count in equal bins of t."""
    losses, t = metrics["loss"], metrics["t"]
    index = jnp.minimum((t * num_bins).astype(jnp.int32), num_bins - 1)
    member = index[:, None] == jnp.arange(num_bins)
    return {
        "loss": jnp.mean(losses),
        "bin_loss": jnp.sum(jnp.where(member, losses[:, None], 0.0), axis=0),
        "bin_count": jnp.sum(member, axis=0, dtype=jnp.float32),
    }
