"""Everything that a run needs before its first step, in the order in which it fails.

Cheap checks come first: nothing is downloaded or compiled for a config that cannot run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm import factory
from multistep_cm.checkpoints import Checkpoints, Trees
from multistep_cm.config import flatten
from multistep_cm.data.pipeline import (
    Batches,
    DataIterator,
    device_put_batch,
    process_shard,
)
from multistep_cm.data.sources import check_data, open_source
from multistep_cm.errors import UserError
from multistep_cm.files import write_text
from multistep_cm.losses.signature import Params, Predict
from multistep_cm.models.build import DTYPES
from multistep_cm.sharding.agreement import (
    check_same,
    main_first,
    together,
    wait_for_all,
)
from multistep_cm.sharding.distributed import is_main_process, say
from multistep_cm.sharding.gathering import ready_block, ready_outside_blocks
from multistep_cm.sharding.mesh import (
    batch_sharding,
    data_parallel_size,
    make_mesh,
    replicate,
)
from multistep_cm.sharding.rules import place_abstract
from multistep_cm.training.ema import more_decays
from multistep_cm.training.finite import SKIPPED
from multistep_cm.training.initialization import abstract_params, make_init
from multistep_cm.training.methods import METHODS
from multistep_cm.training.optimizer import make_optimizer
from multistep_cm.training.state import TrainState, make_state
from multistep_cm.training.step import TrainStep, compile_step, make_train_step
from multistep_cm.training.teacher import check_teacher, load_ema, teacher_config
from multistep_cm.training.tracing import kept_step
from multistep_cm.validation import check_batch, validate
from multistep_cm.workdir import check_shared, open_workdir

OVERVIEW_NAME = "parameters.txt"


def check_run(config: ConfigDict, workdir: Path) -> Mesh:
    """All that can be wrong, before anything is paid for; the mesh of this run.

    Raises UserError, in every process if in any: configs that differ between
    processes, config values, mesh, batch size, teacher, dataset, workdir.
    """
    check_same(
        {f"config key {key}": value for key, value in flatten(config).items()},
        "give all of them the same config",
    )
    mesh = together(lambda: check_config(config))
    if config.teacher.workdir:
        together(lambda: check_teacher(config))
    # The first process may have to prepare the data, and makes the workdir.
    main_first(lambda: check_data(config.data))
    main_first(
        lambda: (
            open_workdir(workdir, config)
            if is_main_process()
            else check_shared(workdir, config)
        )
    )
    return mesh


def check_config(
    config: ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The part that needs neither data nor folders; the mesh over the present devices,
    or over those given. Raises UserError."""
    validate(config)
    factory.make_schedule(config)
    mesh = make_mesh(config.mesh, devices)
    processes = {device.process_index for device in mesh.devices.flat}
    check_batch(config, data_parallel_size(mesh), len(processes))
    return mesh


def load_teacher(
    config: ConfigDict, mesh: Mesh, programs: Path | None = None
) -> Params | None:
    """The averaged weights of `teacher.workdir`; None when the config names none."""
    if not config.teacher.workdir:
        return None
    workdir = Path(config.teacher.workdir)
    of_teacher = teacher_config(config)
    step, params = load_ema(workdir, of_teacher, mesh, programs=programs)
    say(f"teacher: step {step} of {config.teacher.workdir} (averaged weights)")
    return params


def freeze(config: ConfigDict, mesh: Mesh, teacher: Params | None) -> dict[str, Any]:
    """What the step reads and never trains.

    A student's number of steps is a value there and no constant of the program, so that
    the students of every K share one compilation (and its cache).
    """
    method, frozen = METHODS[config.method], {}
    if method.needs_teacher:
        frozen["teacher_params"] = teacher
    if method.is_student:
        steps = jnp.int32(config.consistency.student_steps)
        frozen["student_steps"] = replicate(steps, mesh)
    return frozen


def abstract_state(
    config: ConfigDict, mesh: Mesh, programs: Path | None = None
) -> TrainState:
    """Shapes, dtypes and shardings of the train state; nothing is allocated.

    `programs` is that of `make_init`, here and below. Who has these shapes gives them
    to the functions below as `like`, which otherwise ask again.
    """
    params = abstract_params(config, mesh, programs)
    state = jax.eval_shape(lambda p: first_state(p, config), params)
    return place_abstract(state, mesh)


def first_state(params: Params, config: ConfigDict) -> TrainState:
    """What this config makes of parameters at step 0; to be run inside `jit`."""
    optimizer = make_optimizer(config.training)
    more = more_decays(config.training)
    return make_state(params, optimizer, has_target_average(config), more)


def init_state(
    config: ConfigDict,
    mesh: Mesh,
    teacher: Params | None,
    programs: Path | None = None,
    like: TrainState | None = None,
) -> TrainState:
    """The state at step 0, born sharded: from the teacher, or fresh from the seed."""
    like = like or abstract_state(config, mesh, programs)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    key = jax.random.key(config.seed)
    is_taught = teacher is not None and config.teacher.initialize_student
    if is_taught and not config.consistency.guidance_range:
        start = jax.jit(lambda p: first_state(p, config), out_shardings=shardings)
        return start(teacher)

    init = make_init(config, mesh, programs)

    def fresh(key: jax.Array, taught: Params) -> TrainState:
        params = init(key)
        if taught:  # only what tells it the scale of guidance is new
            parts = {**params["condition"], **taught["condition"]}
            params = {**params, **taught, "condition": parts}
        return first_state(params, config)

    with jax.set_mesh(mesh):
        return jax.jit(fresh, out_shardings=shardings)(
            key, teacher if is_taught else {}
        )


def has_target_average(config: ConfigDict) -> bool:
    """Whether the state holds an average of the weights that makes the targets."""
    return METHODS[config.method].uses_grid and config.consistency.target_decay > 0


def check_start(config: ConfigDict, start: int, skipped: int) -> None:
    """Raise UserError when the run may not go on from this step: whole calls do not
    lead to the last one, or more steps were skipped than the config allows."""
    training, per_call = config.training, config.training.steps_per_call
    if training.on_nan == "skip" and skipped > training.max_skipped_steps:
        raise UserError(
            f"config key training.max_skipped_steps is {training.max_skipped_steps}, "
            f"but by step {start} the run has skipped {skipped} steps that were not "
            "finite: allow at least so many"
        )
    if start % per_call:
        raise UserError(
            f"config key training.steps_per_call is {per_call}, but the run goes on "
            f"from step {start}, which is no multiple of it: choose one that divides"
        )


def describe_network(params: Params, workdir: Path) -> None:
    """Say how large it is; `parameters.txt` lists every array."""
    number = parameter_overview.count_parameters(params)
    say(f"network: {number:,} parameters, listed in {workdir / OVERVIEW_NAME}")
    if is_main_process():
        table = parameter_overview.get_parameter_overview(params, include_stats=False)
        write_text(workdir / OVERVIEW_NAME, table + "\n")


def split_state(state: TrainState) -> Trees:
    """The trees that a checkpoint of the state holds; the step is its number, and
    `position` holds the rest."""
    trees = {"params": state.params, "ema": state.ema, "optimizer": state.optimizer}
    target = {} if state.target is None else {"target": state.target}
    return {**trees, **target, **state.more_emas}


def position(state: TrainState, data_state: dict[str, Any]) -> dict[str, Any]:
    """Where a run is, beside its arrays: in the data, and how many steps it skipped."""
    return {**data_state, SKIPPED: int(jax.device_get(state.skipped))}


def restore_state(
    checkpoints: Checkpoints,
    config: ConfigDict,
    mesh: Mesh,
    like: TrainState | None = None,
) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest good state and `position` of this run; None when it is new."""
    found = checkpoints.restore(split_state(like or abstract_state(config, mesh)))
    if found is None:
        return None
    step, trees, where = found
    # Older checkpoints count no skipped steps, for there were none.
    counts = {"step": step, "skipped": where.get(SKIPPED, 0)}
    scalars = {
        name: replicate(jnp.int32(count), mesh) for name, count in counts.items()
    }
    more = {name: trees.pop(name) for name in more_decays(config.training)}
    state = TrainState(more_emas=more, **scalars, **{"target": None, **trees})
    return state, where


def abstract_batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The global batch of one call, with shardings."""
    data, training = config.data, config.training
    calls = training.steps_per_call
    leading = (calls,) if calls > 1 else ()
    sharding = batch_sharding(mesh, leading_axes=len(leading))
    shape = (*leading, training.batch_size)
    image_shape = (*shape, data.image_size, data.image_size, data.channels)
    shapes = {
        "image": jax.ShapeDtypeStruct(image_shape, jnp.uint8),
        "label": jax.ShapeDtypeStruct(shape, jnp.int32),
        **factory.text_shapes(data, shape),
    }
    return {
        key: jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding)
        for key, like in shapes.items()
    }


def open_data(config: ConfigDict, mesh: Mesh) -> DataIterator:
    """The training batches of this process, moved to its devices ahead of time."""
    data, like = config.data, abstract_batch(config, mesh)["label"]
    shard, num_shards = process_shard(like.sharding, like.shape)
    batches = Batches(
        open_source(data, data.train_split),
        config.training.batch_size,
        config.seed,
        flip=data.flip,
        steps_per_call=config.training.steps_per_call,
        shard=shard,
        num_shards=num_shards,
    )
    put = device_put_batch(like.sharding)
    return DataIterator(batches, put, data.num_threads, data.prefetch)


def make_sharded_predict(config: ConfigDict, mesh: Mesh) -> Predict:
    """The network for parameters that are cut over this mesh."""
    schedule, prediction = factory.make_schedule(config), config.diffusion.prediction
    if mesh.shape["fsdp"] == 1:
        return factory.make_predict(factory.make_network(config), schedule, prediction)
    ready = ready_block(mesh, DTYPES[config.model.dtype])
    network = factory.make_network(config, ready)
    predict = factory.make_predict(network, schedule, prediction)
    outside = ready_outside_blocks(mesh)
    return lambda params, *inputs: predict(outside(params), *inputs)


def make_step(config: ConfigDict, mesh: Mesh) -> TrainStep:
    """The train step of this config for this mesh, before it is compiled."""
    schedule = factory.make_schedule(config)
    predict = make_sharded_predict(config, mesh)
    loss = METHODS[config.method].make_loss(predict, schedule, config)
    return make_train_step(loss, make_optimizer(config.training), config, mesh)


def build_step(
    config: ConfigDict,
    mesh: Mesh,
    frozen: dict[str, Any],
    programs: Path | None = None,
    like: TrainState | None = None,
) -> jax.stages.Compiled:
    """Compile the train step of this config for this mesh: the run's one program.

    With `programs`, a folder, it is traced only if no earlier start has left it there.
    """
    step = make_step(config, mesh)
    state = like or abstract_state(config, mesh, programs)
    batch = abstract_batch(config, mesh)
    if programs is not None:
        step = kept_step(step, state, batch, frozen, config, mesh, programs)
    compiled = compile_step(step, state, batch, frozen, mesh)
    wait_for_all("compiled the train step")
    return compiled
