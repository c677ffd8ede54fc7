"""Compile a config's train step for devices, and keep what the compiler says of it."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm.planning.chips import GIB
from multistep_cm.training import setup
from multistep_cm.training.compilation import abstract_frozen

UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": GIB, "T": 1024 * GIB}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device while a step runs, by the compiler.

    Attributes:
        arguments: state, batch and teacher.
        outputs: the new state and the metrics.
        aliased: outputs in the place of arguments, counted in both.
        temporaries: everything in between.
        program: the instructions.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    program: int

    @property
    def total(self) -> int:
        """What must fit."""
        kept = self.arguments + self.outputs - self.aliased
        return kept + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Compilation:
    """A step that was compiled, or that the compiler refused for want of memory.

    Attributes:
        fits: whether it was compiled.
        used_bytes: of one device; at least so much when it does not fit, None when the
            compiler does not say.
        usable_bytes: of one device, when the compiler says it.
        seconds: that the compiler took.
        memory: parts of `used_bytes`.
        text: of the program (HLO).
        flops, bytes: the compiler's own totals of one device, which count a loop's
            body once.
    """

    fits: bool
    used_bytes: int | None
    usable_bytes: int | None
    seconds: float
    memory: Memory | None = None
    text: str = ""
    flops: float | None = None
    bytes: float | None = None


def compile_config(config: ConfigDict, mesh: Mesh) -> Compilation:
    """Compile the run's own train step; nothing is read, run or allocated."""
    begin = time.perf_counter()
    try:
        with _no_cache():
            compiled = setup.build_step(config, mesh, abstract_frozen(config, mesh))
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        used, usable = parse_refusal(message)
        return Compilation(False, used, usable, time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    found = compiled.memory_analysis()
    memory = None
    if found is not None:
        memory = Memory(
            arguments=found.argument_size_in_bytes,
            outputs=found.output_size_in_bytes,
            aliased=found.alias_size_in_bytes,
            temporaries=found.temp_size_in_bytes,
            program=found.generated_code_size_in_bytes,
        )
    costs = compiled.cost_analysis() or {}
    return Compilation(
        fits=True,
        used_bytes=memory.total if memory else None,
        usable_bytes=ask_usable_bytes(mesh.devices.flat[0]),
        seconds=seconds,
        memory=memory,
        text=compiled.as_text() or "",
        flops=costs.get("flops"),
        bytes=costs.get("bytes accessed"),
    )


def ask_usable_bytes(device: jax.Device) -> int | None:
    """What a program may use of a device's memory, by the compiler; None if it does not
    say.

    The TPU compiler says it only of a program that needs more: here is one.
    """
    if device.platform != "tpu":
        return None
    where = jax.sharding.SingleDeviceSharding(device)
    endless = jax.ShapeDtypeStruct((2**38,), jnp.float32, sharding=where)
    try:
        with _no_cache():
            jax.jit(jnp.cumsum).lower(endless).compile()
    except jax.errors.JaxRuntimeError as error:
        return parse_refusal(str(error))[1]
    return None


def parse_refusal(message: str) -> tuple[int | None, int | None]:
    """(used, usable) bytes of a device, from what the compiler says; None if nothing.

    Two wordings: "Used 19.31G of 15.75G hbm" of the whole program, and "the total
    memory required for HLO temporaries (48.12G) exceeds available HBM (15.75G)" when
    these alone are too much.
    """
    size = r"\(?([\d.]+)([KMGT]?)\)?"
    for pattern in (
        rf"Used {size} of {size} hbm",
        rf"memory required for [\w ]+ {size} exceeds available HBM {size}",
    ):
        if found := re.search(pattern, message):
            number, unit, most, most_unit = found.groups()
            used = float(number) * UNITS[unit]
            return int(used), int(float(most) * UNITS[most_unit])
    return None, None


def gib(size: int) -> str:
    """Bytes as GiB, or as MiB where there are few."""
    if abs(size) < 0.1 * GIB:
        return f"{size / 1024**2:,.1f} MiB"
    return f"{size / GIB:,.2f} GiB"


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """Programs for devices that are not here cannot be read back from the cache, and
    the time of one that is read back would be none of the compiler's."""
    name = "jax_enable_compilation_cache"
    before = getattr(jax.config, name)
    jax.config.update(name, False)
    try:
        yield
    finally:
        jax.config.update(name, before)
