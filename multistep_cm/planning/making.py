"""Make a plan: check, count, compile, read what was compiled, estimate."""

import dataclasses
import importlib.metadata
import os
from collections.abc import Callable, Mapping, Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm import __version__, factory
from multistep_cm.models.build import count_parameters
from multistep_cm.planning import advice, hlo, traffic
from multistep_cm.planning.advice import Attempt
from multistep_cm.planning.collectives import Collective, collectives
from multistep_cm.planning.compiling import Compilation, compile_config
from multistep_cm.planning.flops import count_flops
from multistep_cm.planning.plan import Plan
from multistep_cm.planning.roofline import Roofline, Work, estimate
from multistep_cm.planning.topology import Topology, get_devices, host_memory_bytes
from multistep_cm.sharding.distributed import say
from multistep_cm.training import setup
from multistep_cm.training.compilation import abstract_frozen
from multistep_cm.training.methods import METHODS

FLAGS = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")
"""Where compilers take flags from; see launch/xla_flags."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be planned.

    Attributes:
        config: as `load_config` gives it; `teacher.workdir` may be empty.
        specification, overrides: what it was made of, for the record.
        search: whether to look for a change that fits, when the config does not.
    """

    config: ConfigDict
    topology: Topology
    specification: str = ""
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    search: bool = True


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the text of a program says of one step of one device; see `Plan`."""

    collectives: tuple[Collective, ...] = ()
    hbm_bytes: int | None = None
    cycles: int | None = None
    unknown_loops: tuple[str, ...] = ()


def make_plan(
    request: Request,
    compile_step: Callable[[ConfigDict, Mesh], Compilation] = compile_config,
) -> Plan:
    """The plan; prints what it is at.

    Raises UserError, before anything is compiled, for what `get_devices` and
    `setup.check_config` refuse.
    """
    topology, config = request.topology, with_teacher(request.config)
    devices = get_devices(topology)
    mesh = setup.check_config(config, devices)
    hardware_flops = step_flops(config, mesh)
    model_flops = step_flops(advice.apply(config, {"model.remat": "none"}), mesh)
    say(
        f"compiling the train step of {request.specification or config.method} for "
        f"{topology.name} ({len(devices)} devices): seconds for a small network, "
        "minutes for a large one .."
    )
    compiled = compile_step(config, mesh)
    usable = compiled.usable_bytes or usable_bytes(topology)
    # A CPU's compiler refuses nothing.
    fits = compiled.fits and (
        topology.chip is not None or (compiled.used_bytes or 0) <= usable
    )
    say(advice.said(compiled))
    tried: Sequence[Attempt] = ()
    if not fits and topology.chip and request.search:
        check = lambda changed: setup.check_config(changed, devices)  # noqa: E731
        tried = advice.search(config, mesh, compiled, check, compile_step, say)
    reading = read_program(compiled.text, topology, config.training.steps_per_call)
    chip = topology.chip
    return Plan(
        topology=topology.name,
        num_devices=topology.num_devices,
        num_chips=topology.num_devices // (chip.devices if chip else 1),
        specification=request.specification,
        overrides=dict(request.overrides),
        method=config.method,
        batch_size=config.training.batch_size,
        accumulation=config.training.accumulation,
        remat=config.model.remat,
        mesh=dict(mesh.shape),
        parameters=count_parameters(
            factory.abstract_params(factory.make_network(config), config)
        ),
        flops_per_step=model_flops,
        hardware_flops_per_step=hardware_flops,
        hbm_per_device_bytes=usable,
        used_per_device_bytes=compiled.used_bytes,
        memory=compiled.memory,
        fits=fits,
        tried=tuple(tried),
        compile_seconds=compiled.seconds,
        compiler_flops=compiled.flops,
        compiler_bytes=compiled.bytes,
        collectives=reading.collectives,
        hbm_bytes_per_step=reading.hbm_bytes,
        estimated_cycles=reading.cycles,
        unknown_loops=reading.unknown_loops,
        roofline=make_roofline(reading, model_flops, hardware_flops, topology),
        chip_source=chip.source if chip else "",
        compiler_flags={n: os.environ[n] for n in FLAGS if os.environ.get(n)},
        versions=versions(),
    )


def with_teacher(config: ConfigDict) -> ConfigDict:
    """The config with some teacher where it needs one and names none.

    A teacher has the network of its student: its shapes are known without it.
    """
    if METHODS[config.method].needs_teacher and not config.teacher.workdir:
        return advice.apply(config, {"teacher.workdir": "(any teacher)"})
    return config


def step_flops(config: ConfigDict, mesh: Mesh) -> int:
    """Our count of one optimizer step over the whole batch."""
    total = count_flops(
        setup.make_step(config, mesh),
        setup.abstract_state(config, mesh),
        setup.abstract_batch(config, mesh),
        abstract_frozen(config, mesh),
    )
    return total // config.training.steps_per_call


def usable_bytes(topology: Topology) -> int:
    """Of one device, for a program; of simulated ones, a share of this machine's."""
    if topology.chip:
        return topology.chip.usable_bytes
    return host_memory_bytes() // topology.num_devices


def read_program(text: str, topology: Topology, steps_per_call: int) -> Reading:
    """What a program does in one step; nothing where there is no program."""
    if not text:
        return Reading()
    program = hlo.parse(text)
    rows = collectives(program, topology.num_devices)
    hbm, cycles = traffic.hbm_bytes(program), hlo.total_cycles(program)
    has_chip = topology.chip is not None
    return Reading(
        collectives=tuple(_divide(row, steps_per_call) for row in rows),
        hbm_bytes=hbm // steps_per_call if has_chip else None,
        cycles=cycles // steps_per_call if has_chip else None,
        unknown_loops=tuple(hlo.unknown_loops(program)),
    )


def make_roofline(
    reading: Reading, model_flops: int, hardware_flops: int, topology: Topology
) -> Roofline | None:
    """None without a chip or without a program."""
    if topology.chip is None or reading.hbm_bytes is None or reading.cycles is None:
        return None
    link_bytes = sum(row.link_bytes for row in reading.collectives)
    work = Work(
        model_flops, hardware_flops, reading.hbm_bytes, link_bytes, reading.cycles
    )
    return estimate(work, topology.chip, topology)


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    found = {"multistep_cm": __version__, "jax": jax.__version__}
    try:
        found["libtpu"] = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        found["libtpu"] = "absent"
    return found


def _divide(row: Collective, steps: int) -> Collective:
    """Of one step, from several in a call."""
    return dataclasses.replace(
        row,
        count=row.count // steps,
        bytes=row.bytes // steps,
        link_bytes=row.link_bytes // steps,
    )
