"""Bytes between HBM and chip, on programs whose answers are known by hand."""

import pytest

from multistep_cm.planning import hlo
from multistep_cm.planning.traffic import hbm_bytes

SLICE = """%slice (p: f32[10,8], i: s32[]) -> f32[1,8] {
  %p = f32[10,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[10,8]{1,0} bitcast(%p)
  ROOT %d = f32[1,8]{1,0} dynamic-slice(%b, %i, %i), dynamic_slice_sizes={1,8}
}

"""
UPDATE = """%update (p: f32[10,8], u: f32[1,8], i: s32[]) -> f32[10,8] {
  %p = f32[10,8]{1,0} parameter(0)
  %u = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %d = f32[10,8]{1,0} dynamic-update-slice(%p, %u, %i, %i)
}

"""
ALL = """%all (p: f32[10,8]) -> f32[10,8] {
  %p = f32[10,8]{1,0} parameter(0)
  ROOT %n = f32[10,8]{1,0} negate(%p)
}

"""
CHIP = "{1,0:T(8,128)S(1)}"


def entry(line: str) -> hlo.Program:
    return hlo.parse(
        f"{SLICE}{UPDATE}{ALL}ENTRY %main (a: f32[10,8]) -> f32[10,8] {{\n"
        "  %a = f32[10,8]{1,0} parameter(0)\n"
        "  %row = f32[1,8]{1,0} parameter(1)\n"
        f"  %near = f32[10,8]{CHIP} parameter(2)\n"
        "  %i = s32[]{:S(1)} constant(0)\n"
        f"  {line}\n}}\n"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%x = f32[10,8]{1,0} fusion(%a), kind=kLoop, calls=%all", 640),
        (f"%x = f32[10,8]{CHIP} fusion(%a), kind=kLoop, calls=%all", 320),
        (f"%x = f32[10,8]{CHIP} fusion(%near), kind=kLoop, calls=%all", 0),
        ("%x = f32[1,8]{1,0} fusion(%a, %i), kind=kLoop, calls=%slice", 64),
        ("%x = f32[10,8]{1,0} fusion(%a, %row, %i), kind=kLoop, calls=%update", 64),
        ("%x = f32[1,8]{1,0} dynamic-slice(%a, %i, %i)", 64),
        ("%x = f32[10,8]{1,0} dynamic-update-slice(%a, %row, %i, %i)", 64),
        (f"%x = (f32[10,8]{CHIP}, f32[10,8]{{1,0}}, u32[]) copy-start(%a)", 320),
        (f"%x = ((f32[10,8]{{1,0}}), f32[2,8]{CHIP}, s32[]) slice-start(%a)", 64),
        (f"%x = f32[10,8]{CHIP} copy-done(%a)", 0),
        ("%x = f32[80]{0} bitcast(%a)", 0),
        ("%x = (f32[10,8]{1,0}) tuple(%a)", 0),
        ("%x = f32[10,10]{1,0} dot(%a, %near)", 320 + 400),
    ],
)
def test_bytes_of_one_instruction(line: str, expected: int) -> None:
    assert hbm_bytes(entry(f"ROOT {line}")) == expected
