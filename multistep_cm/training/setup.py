"""Everything that a run needs before its first step, in the order in which it fails.

Cheap checks come first: nothing is downloaded or compiled for a config that cannot run.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm import factory
from multistep_cm.checkpoints import Checkpoints, Trees
# from multistep_cm.data.sources import check_data
from multistep_cm.losses.signature import Params
from multistep_cm.sharding.distributed import say
from multistep_cm.sharding.mesh import (
    batch_sharding,
    data_parallel_size,
    make_mesh,
    replicated,
)
from multistep_cm.sharding.rules import place_abstract
from multistep_cm.training.methods import METHODS
from multistep_cm.training.optimizer import make_optimizer
from multistep_cm.training.state import TrainState, make_state
from multistep_cm.training.step import compile_step, make_train_step
from multistep_cm.training.teacher import check_teacher, load_ema
from multistep_cm.validation import check_batch, validate
from multistep_cm.workdir import open_workdir


def check_run(config: ConfigDict, workdir: Path) -> Mesh:
    """All that can be wrong, before anything is paid for; the mesh of this run.

    Raises UserError: config values, mesh, batch size, dataset, teacher, workdir.
    """
    validate(config)
    factory.make_schedule(config)
    mesh = make_mesh(config.mesh)
    check_batch(config, data_parallel_size(mesh), jax.process_count())
    if config.teacher.workdir:
        check_teacher(config)
    check_data(config.data)
    open_workdir(workdir, config)
    return mesh


def load_frozen(config: ConfigDict, mesh: Mesh) -> dict[str, Params]:
    """What the step reads and never trains: `{"teacher_params": ..}` or nothing."""
    if not config.teacher.workdir:
        return {}
    step, params = load_ema(Path(config.teacher.workdir), config, mesh)
    say(f"teacher: step {step} of {config.teacher.workdir} (averaged weights)")
    return {"teacher_params": params}


def abstract_state(config: ConfigDict, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the train state; nothing is allocated."""
    network = factory.make_network(config)
    params = factory.abstract_params(network, config)
    state = jax.eval_shape(
        lambda tree: make_state(tree, make_optimizer(config.training)), params
    )
    return place_abstract(state, mesh)


def init_state(
    config: ConfigDict, mesh: Mesh, frozen: dict[str, Params]
) -> TrainState:
    """The state at step 0, born sharded: from the teacher, or fresh from the seed."""
    network = factory.make_network(config)
    optimizer = make_optimizer(config.training)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    if frozen and config.teacher.initialize_student:
        start = jax.jit(lambda p: make_state(p, optimizer), out_shardings=shardings)
        return start(frozen["teacher_params"])

    def fresh(key: jax.Array) -> TrainState:
        return make_state(factory.init_params(network, config, key), optimizer)

    return jax.jit(fresh, out_shardings=shardings)(jax.random.key(config.seed))


def split_state(state: TrainState) -> Trees:
    """The trees that a checkpoint of the state holds; the step is its number."""
    return {"params": state.params, "ema": state.ema, "optimizer": state.optimizer}


def restore_state(
    checkpoints: Checkpoints, config: ConfigDict, mesh: Mesh
) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest good state and data position of this run; None when it is new."""
    found = checkpoints.restore(split_state(abstract_state(config, mesh)))
    if found is None:
        return None
    step, trees, data_state = found
    step_array = jax.device_put(jnp.int32(step), replicated(mesh))
    return TrainState(step=step_array, **trees), data_state


def abstract_batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The global batch of one call, with shardings."""
    data, training = config.data, config.training
    calls = training.steps_per_call
    leading = (calls,) if calls > 1 else ()
    sharding = batch_sharding(mesh, leading_axes=len(leading))
    shape = (*leading, training.batch_size)
    image_shape = (*shape, data.image_size, data.image_size, data.channels)
    return {
        "image": jax.ShapeDtypeStruct(image_shape, jnp.uint8, sharding=sharding),
        "label": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding),
    }


def open_data(config: ConfigDict, mesh: Mesh) -> "DataIterator":
    """The training batches of this process, moved to its devices ahead of time."""
    raise NotImplementedError


def build_step(
    config: ConfigDict, mesh: Mesh, frozen: dict[str, Params]
) -> jax.stages.Compiled:
    """Compile the train step of this config for this mesh: the run's one program."""
    network = factory.make_network(config)
    schedule = factory.make_schedule(config)
    predict = factory.make_predict(network, schedule, config.diffusion.prediction)
    loss = METHODS[config.method].make_loss(predict, schedule, config)
    step = make_train_step(loss, make_optimizer(config.training), config, mesh)
    return compile_step(
        step, abstract_state(config, mesh), abstract_batch(config, mesh), frozen, mesh
    )
