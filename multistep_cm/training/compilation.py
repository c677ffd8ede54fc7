"""Compile a run's step ahead of the run: into the cache, and to see its memory."""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm.config import flatten
from multistep_cm.sharding.agreement import check_same, together
from multistep_cm.sharding.distributed import say
from multistep_cm.sharding.mesh import replicated
from multistep_cm.training import setup
from multistep_cm.training.initialization import abstract_params
from multistep_cm.training.methods import METHODS
from multistep_cm.training.teacher import teacher_config

MIB = 1024**2


def compile_only(config: ConfigDict, programs: Path | None = None) -> None:
    """Compile the train step for the present devices and say what it costs.

    With a compilation cache, `train` with the same config, devices and `programs`
    finds the step there. Data, teacher and workdir are not looked at. Raises UserError
    for a config that cannot run on these devices, or that differs between processes.
    """
    check_same(
        {f"config key {key}": value for key, value in flatten(config).items()},
        "give all of them the same config",
    )
    mesh = together(lambda: setup.check_config(config))
    directory = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    # Even what compiles in no time: it was asked for.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    say(f"compiling the train step for {mesh.size} devices ..")
    begin = time.perf_counter()
    compiled = setup.build_step(config, mesh, abstract_frozen(config, mesh), programs)
    say(f"compiled in {time.perf_counter() - begin:.1f} s")
    for line in memory_lines(compiled):
        say(line)
    say(
        f"kept in {directory}"
        if directory
        else "kept nowhere: name a folder with --compilation_cache=DIR"
    )


def abstract_frozen(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """What `setup.freeze` returns, as shapes with shardings."""
    method, frozen = METHODS[config.method], {}
    if method.needs_teacher:
        frozen["teacher_params"] = abstract_params(teacher_config(config), mesh)
    if method.is_student:
        whole = replicated(mesh)
        frozen["student_steps"] = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return frozen


def memory_lines(compiled: jax.stages.Compiled) -> list[str]:
    """The compiler's account of one device's memory, in MiB; what it says of it."""
    memory = compiled.memory_analysis()
    if memory is None:
        return ["this backend does not say how much memory the step takes"]
    parts = {
        "arguments (state, batch, teacher)": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "of them in the place of arguments": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    lines = [f"  {name}: {size / MIB:,.1f} MiB" for name, size in parts.items()]
    return [f"memory of one device: {total / MIB:,.1f} MiB", *lines]
