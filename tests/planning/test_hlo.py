"""The reader of compiled programs, on programs whose answers are known by hand."""

import jax
import jax.numpy as jnp
import pytest

from multistep_cm.planning import hlo
from multistep_cm.planning.hlo import Array

# Three rounds, each with an inner loop of four (start 2, step 2, i <= 8) and a fusion
# of 10 cycles; a fusion of 1000 cycles once. The 7 in a fusion's body are part of it.
LOOPS = """HloModule loops, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%p), backend_config={"estimated_cycles":"7"}
}

%inner_body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %q = (s32[], f32[8]{0}) parameter(0)
  %two = s32[] constant(2)
  %k = s32[] get-tuple-element(%q), index=0
  %next = s32[]{:T(128)} add(%k, %two)
  %v = f32[8]{0} get-tuple-element(%q), index=1
  %f.2 = f32[8]{0} fusion(%v), kind=kLoop, calls=%fused, \
backend_config={"flag_configs":[],"window_config":{"estimated_cycles":"100"}}
  ROOT %t.2 = (s32[]{:T(128)}, f32[8]{0}) tuple(%next, %f.2)
}

%inner_condition (r: (s32[], f32[8])) -> pred[] {
  %r = (s32[], f32[8]{0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%r), index=0
  %eight = s32[] constant(8)
  ROOT %le = pred[] compare(%i.2, %eight), direction=LE
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0:T(128)S(1)}) parameter(0)
  %one = s32[] constant(1)
  %i = s32[] get-tuple-element(%s), index=0
  %i.next = s32[] add(%i, %one)
  %x = f32[8]{0:T(128)S(1)} get-tuple-element(%s), index=1
  %f.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, \
backend_config={"window_config":{"estimated_cycles":"10"}}
  %begin = s32[] constant(2)
  %copied = s32[] copy(%begin)
  %state.2 = (s32[], f32[8]{0}) tuple(%copied, %f.1)
  %loop.2 = (s32[], f32[8]{0}) while(%state.2), condition=%inner_condition, \
body=%inner_body
  %y = f32[8]{0} get-tuple-element(%loop.2), index=1
  ROOT %t.1 = (s32[], f32[8]{0}) tuple(%i.next, %y)
}

%condition (u: (s32[], f32[8])) -> pred[] {
  %u = (s32[], f32[8]{0}) parameter(0)
  %i.3 = s32[] get-tuple-element(%u), index=0
  %three = s32[] constant(3)
  ROOT %lt = pred[] compare(%i.3, %three), direction=LT, metadata={op_name="a(b)/c"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0:T(128)} parameter(0), metadata={op_name="a"}
  %f.0 = f32[8]{0} fusion(%a), kind=kLoop, calls=%fused, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
  %zero = s32[] constant(0)
  %state.1 = (s32[], f32[8]{0}) tuple(%zero, %f.0)
  %loop.1 = (s32[], f32[8]{0}) while(%state.1), condition=%condition, body=%body
  ROOT %z = f32[8]{0} get-tuple-element(%loop.1), index=1
}
"""


def times(program: hlo.Program, name: str) -> list[int]:
    return [run.times for run in hlo.runs(program) if run.instruction.name == name]


def test_loops_are_multiplied_by_their_rounds() -> None:
    program = hlo.parse(LOOPS)
    assert program.entry == "main"
    assert times(program, "f.0") == [1]
    assert times(program, "f.1") == [3]
    assert times(program, "f.2") == [3 * 4]
    assert sorted(times(program, "n")) == [1, 3, 12]
    assert hlo.total_cycles(program) == 1000 + 3 * 10 + 12 * 100
    assert not hlo.unknown_loops(program)


def test_what_is_fused_says_so() -> None:
    fused = {
        run.fusion for run in hlo.runs(hlo.parse(LOOPS)) if run.instruction.name == "n"
    }
    assert fused == {"fused"}


def test_an_instruction_is_taken_apart() -> None:
    body = hlo.parse(LOOPS).computations["body"]
    loop, x = body["loop.2"], body["x"]
    assert loop.opcode == "while"
    assert loop.operands == ("state.2",)
    assert dict(loop.called) == {"condition": "inner_condition", "body": "inner_body"}
    assert loop.arrays == (Array("s32", ()), Array("f32", (8,)))
    assert loop.bytes == 4 + 32
    assert x.arrays == (Array("f32", (8,), space=1),)
    assert body["t.1"].is_root


@pytest.mark.parametrize(
    ("old", "new", "rounds"),
    [
        ("constant(3)", "constant(0)", 0),
        ("direction=LT", "direction=LE", 4),
        ("direction=LT", "direction=NE", 3),
        ("(%i.3, %three), direction=LT", "(%three, %i.3), direction=GT", 3),
        ("add(%i, %one)", "add(%one, %i)", 3),
        ("%zero = s32[] constant(0)", "%zero = s32[] constant(-2)", 5),
        ("condition=%condition, body=%body", "condition=%condition, body=%body, "
         'backend_config={"known_trip_count":{"n":"6"}}', 6),
    ],
)  # fmt: skip
def test_the_rounds_of_a_loop(old: str, new: str, rounds: int) -> None:
    assert old in LOOPS
    program = hlo.parse(LOOPS.replace(old, new))
    loop = program.computations["main"]["loop.1"]
    assert hlo.trip_count(program, loop) == rounds


def test_a_loop_that_counts_down() -> None:
    text = LOOPS.replace("%zero = s32[] constant(0)", "%zero = s32[] constant(5)")
    text = text.replace("%one = s32[] constant(1)", "%one = s32[] constant(-1)")
    text = text.replace("direction=LT", "direction=GE")
    program = hlo.parse(text)
    # 5, 4 and 3 are at least 3.
    assert hlo.trip_count(program, program.computations["main"]["loop.1"]) == 3


def test_the_bound_may_be_carried_along() -> None:
    text = LOOPS.replace(
        "%three = s32[] constant(3)", "%three = s32[] get-tuple-element(%u), index=2"
    )
    text = text.replace("tuple(%zero, %f.0)", "tuple(%zero, %f.0, %bound)")
    text = text.replace("%zero = s32", "%bound = s32[] constant(7)\n  %zero = s32")
    program = hlo.parse(text)
    assert hlo.trip_count(program, program.computations["main"]["loop.1"]) == 7


def test_a_comparison_may_be_fused() -> None:
    text = LOOPS.replace(
        "ROOT %lt = pred[] compare(%i.3, %three), direction=LT",
        "ROOT %lt = pred[] fusion(%i.3, %three), kind=kLoop, calls=%wrapped",
    ).replace(
        "%condition (u",
        "%wrapped (l: s32[], m: s32[]) -> pred[] {\n"
        "  %l = s32[] parameter(0)\n"
        "  %m = s32[] parameter(1)\n"
        "  ROOT %lt.2 = pred[] compare(%l, %m), direction=LT\n}\n\n%condition (u",
    )
    program = hlo.parse(text)
    assert hlo.trip_count(program, program.computations["main"]["loop.1"]) == 3


def test_an_unreadable_loop_counts_once_and_is_named() -> None:
    program = hlo.parse(LOOPS.replace("s32[] constant(3)", "s32[] custom-call()"))
    assert hlo.unknown_loops(program) == ["loop.1"]
    assert times(program, "f.1") == [1]


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing")


def test_a_compiled_scan_is_read() -> None:
    def body(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.sin(carry @ carry), None

    def run(x: jax.Array) -> jax.Array:
        return jax.lax.scan(body, x, length=5)[0]

    text = jax.jit(run).lower(jnp.ones((16, 16))).compile().as_text()
    program = hlo.parse(str(text))
    products = [
        run.times
        for run in hlo.runs(program)
        if run.instruction.opcode in ("dot", "custom-call")
    ]
    assert products == [5]
