"""Whole plans: for simulated devices, and with a compiler that is made up."""

import dataclasses
import json
from collections.abc import Callable

import jax
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm import factory
from multistep_cm.errors import UserError
from multistep_cm.models.build import count_parameters
from multistep_cm.planning import making
from multistep_cm.planning.compiling import Compilation, Memory, gib
from multistep_cm.planning.making import Request, make_plan, with_teacher
from multistep_cm.planning.plan import PROVENANCE, Plan, to_json, verdict
from multistep_cm.planning.report import flops, format_plan, number
from multistep_cm.planning.topology import parse_topology
from tests.planning.test_hlo import LOOPS
from tests.training.tiny import tiny_config

GIB = 1024**3


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A network on eight simulated devices, its parameters cut."""
    config = tiny_config(None, mesh__data=1, mesh__fsdp=-1)
    config.model.channels = (64,)
    request = Request(config, parse_topology("cpu:8"), "tiny.py:a=b", {"a": "b"})
    return make_plan(request)


def test_a_plan_for_simulated_devices(plan: Plan) -> None:
    assert plan.fits
    assert plan.num_devices == 8
    assert plan.mesh == {"data": 1, "fsdp": 8, "tensor": 1}
    config = tiny_config()
    config.model.channels = (64,)
    params = factory.abstract_params(factory.make_network(config), config)
    assert plan.parameters == count_parameters(params)
    # Parameters, their average and two moments: large leaves are in eighths.
    assert plan.memory
    whole = 4 * 4 * plan.parameters
    assert whole / 8 < plan.memory.arguments < whole / 2
    kinds = {row.kind for row in plan.collectives}
    assert "all-gather" in kinds
    assert all(row.group_size == 8 for row in plan.collectives)
    assert plan.roofline is None
    assert plan.estimated_cycles is None


def test_the_file_holds_what_was_promised(plan: Plan) -> None:
    content = json.loads(to_json(plan))
    promised = (
        "topology num_devices parameters hbm_per_device_bytes used_per_device_bytes "
        "flops_per_step collectives fits memory headroom_bytes compiler_flops "
        "compiler_bytes compile_seconds estimated_cycles roofline steps_per_second mfu "
        "verdict tried versions specification overrides"
    )
    assert set(promised.split()) <= content.keys()
    assert content["provenance"].keys() == PROVENANCE.keys() <= content.keys()
    assert content["specification"] == "tiny.py:a=b"
    assert content["overrides"] == {"a": "b"}
    assert content["versions"]["jax"] == jax.__version__
    memory = content["memory"]
    kept = memory["arguments"] + memory["outputs"] - memory["aliased"]
    used = kept + memory["temporaries"] + memory["program"]
    assert content["used_per_device_bytes"] == used
    assert content["hbm_per_device_bytes"] - used == content["headroom_bytes"]


def test_the_table_says_where_each_figure_is_from(plan: Plan) -> None:
    text = format_plan(plan)
    for line in text.splitlines():
        if line.startswith("| parameters "):
            assert line.rstrip(" |").endswith("counted")
        if line.startswith("| compile time"):
            assert line.rstrip(" |").endswith("measured")
    assert "all-gather" in text
    assert text.splitlines()[-1].startswith("fits: ")
    widths = {len(line) for line in text.split("\n\n")[0].splitlines()}
    assert len(widths) == 1


def made_up(fits_with_parts: int) -> Callable[[ConfigDict, Mesh], Compilation]:
    """A compiler for which the batch has to be in so many parts."""

    def compile_step(config: ConfigDict, mesh: Mesh) -> Compilation:
        parts = config.training.accumulation
        if parts < fits_with_parts:
            return Compilation(False, 32 * GIB // parts, int(15.75 * GIB), 2.0)
        memory = Memory(GIB, GIB, GIB, 3 * GIB, 0)
        return Compilation(True, memory.total, None, 2.0, memory, LOOPS, 1e9, 1e9)

    return compile_step


def counted(config: ConfigDict, mesh: Mesh) -> int:
    """Stands in for tracing the step, which takes seconds."""
    return 4_000_000 if config.model.remat == "full" else 3_000_000


@pytest.fixture
def slice_of_v5e(monkeypatch: pytest.MonkeyPatch) -> Request:
    """A request for eight chips, for which simulated devices stand in."""
    monkeypatch.setattr(making, "get_devices", lambda _: jax.devices()[:8])
    monkeypatch.setattr(making, "step_flops", counted)
    config = tiny_config(None, method="cd", training__batch_size=64)
    config.model.remat = "full"
    config.mesh.update(data=1, fsdp=8)
    return Request(config, parse_topology("v5e:2x4"))


def test_a_plan_that_fits(slice_of_v5e: Request) -> None:
    plan = make_plan(slice_of_v5e, made_up(1))
    assert plan.fits
    assert not plan.tried
    assert plan.used_per_device_bytes == 4 * GIB
    assert plan.estimated_cycles == 1000 + 3 * 10 + 12 * 100
    assert plan.roofline
    slow, fast = plan.roofline.steps_per_second
    assert 0 < slow <= fast
    assert verdict(plan) == (
        "fits: 4.00 GiB of 15.75 GiB of each device, 11.75 GiB left"
    )
    text = format_plan(plan)
    assert "| estimated |" in text.replace("  ", " ")
    assert json.loads(to_json(plan))["steps_per_second"] == [slow, fast]


def test_a_plan_that_does_not_fit_says_what_would(slice_of_v5e: Request) -> None:
    plan = make_plan(slice_of_v5e, made_up(4))
    assert not plan.fits
    # Two parts cannot be enough: 32 GiB are more than twice what there is.
    assert [attempt.changes for attempt in plan.tried] == [{"training.accumulation": 4}]
    assert plan.used_per_device_bytes == 32 * GIB
    assert plan.headroom_bytes == int(15.75 * GIB) - 32 * GIB
    assert not plan.collectives
    assert plan.roofline is None
    assert verdict(plan) == (
        "does not fit: it needs at least 32.00 GiB of 15.75 GiB of each device; it "
        "does with --config.training.accumulation=4, then 4.00 GiB"
    )
    assert "| --config.training.accumulation=4 " in format_plan(plan)
    assert json.loads(to_json(plan))["fits"] is False


def test_a_plan_that_nothing_helps(slice_of_v5e: Request) -> None:
    plan = make_plan(slice_of_v5e, made_up(1000))
    assert len(plan.tried) == 2
    assert verdict(plan).endswith("accumulation=8: take more devices")
    once = dataclasses.replace(slice_of_v5e, search=False)
    plan = make_plan(once, made_up(1000))
    assert not plan.tried
    assert verdict(plan).endswith("no other config was tried")


def test_several_steps_a_call_are_divided(slice_of_v5e: Request) -> None:
    whole = make_plan(slice_of_v5e, made_up(1))
    slice_of_v5e.config.training.steps_per_call = 2
    half = make_plan(slice_of_v5e, made_up(1))
    assert half.estimated_cycles == (whole.estimated_cycles or 0) // 2
    assert half.flops_per_step == whole.flops_per_step == 3_000_000
    assert half.hardware_flops_per_step == 4_000_000


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mesh__fsdp": 3}, "multiply to 3, but there are 8 devices"),
        ({"training__batch_size": 12}, "not divisible by 8 data-parallel devices"),
        ({"training__batch_size": -1}, "training.batch_size is -1"),
    ],
)
def test_bad_input_is_never_compiled(values: dict[str, int], said: str) -> None:
    def compile_step(config: ConfigDict, mesh: Mesh) -> Compilation:
        return pytest.fail("bad input was compiled")

    config = tiny_config(None, **values)
    config.mesh.data = 1 if "mesh__fsdp" in values else -1
    with pytest.raises(UserError, match=said):
        make_plan(Request(config, parse_topology("cpu:8")), compile_step)


def test_a_teacher_stands_in_only_where_one_is_needed() -> None:
    assert with_teacher(tiny_config(None, method="cd")).teacher.workdir
    assert not with_teacher(tiny_config(None, method="ct")).teacher.workdir
    config = tiny_config(None, method="cd", teacher__workdir="mine")
    assert with_teacher(config).teacher.workdir == "mine"


def test_a_cpu_share_that_is_too_small_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(making, "host_memory_bytes", lambda: GIB)
    monkeypatch.setattr(making, "step_flops", counted)
    plan = make_plan(Request(tiny_config(), parse_topology("cpu:8")), made_up(1))
    assert not plan.fits
    assert not plan.tried


def test_numbers_are_short() -> None:
    assert gib(3 * GIB // 2) == "1.50 GiB"
    assert gib(1024**2) == "1.0 MiB"
    assert flops(2.2364e15) == "2.236 PFLOP"
    assert flops(12) == "12 FLOP"
    assert number(1234.5) == "1,234"
    assert number(0.01234) == "0.0123"
