"""Kinds and bytes of collectives, on programs whose answers are known by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from multistep_cm.planning import hlo
from multistep_cm.planning.collectives import Collective, collectives, group_size
from multistep_cm.sharding.mesh import make_mesh

HEAD = """HloModule one

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

"""


def entry(*lines: str, before: str = "") -> hlo.Program:
    body = "\n".join(f"  {line}" for line in lines)
    return hlo.parse(
        f"{HEAD}{before}ENTRY %main (p: f32[4]) -> f32[4] {{\n{body}\n}}\n"
    )


P = "%p = bf16[16,4]{1,0} parameter(0)"
GROUPS = "channel_id=1, replica_groups=[2,4]<=[8]"


@pytest.mark.parametrize(
    ("line", "kind", "whole", "over_links"),
    [
        # 4 devices hold 128 bytes each.
        ("%x = bf16[64,4]{1,0} all-gather(%p), dimensions={0}", "all-gather", 512, 384),
        ("%x = bf16[4,4]{1,0} reduce-scatter(%p), to_apply=%add", "reduce-scatter",
         128, 96),
        ("%x = bf16[16,4]{1,0} all-reduce(%p), to_apply=%add", "all-reduce", 128, 192),
        ("%x = bf16[16,4]{1,0} all-to-all(%p), dimensions={0}", "all-to-all", 128, 96),
    ],
)  # fmt: skip
def test_bytes_of_each_kind(line: str, kind: str, whole: int, over_links: int) -> None:
    program = entry(P, f"ROOT {line}, {GROUPS}")
    assert collectives(program, 8) == [
        Collective(kind, "bf16", 4, 1, whole, over_links)
    ]


def test_a_permute_receives_all_that_is_sent() -> None:
    line = "ROOT %x = bf16[16,4]{1,0} collective-permute(%p), channel_id=1, "
    program = entry(P, line + "source_target_pairs={{0,1},{1,2},{2,0}}")
    expected = Collective("collective-permute", "bf16", 2, 1, 128, 128)
    assert collectives(program, 8) == [expected]


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("{}", 8),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['axis_0'=1,'axis_1'=2,'axis_2'=4] {'axis_2'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("mesh['a'=2,'b'=4] {'a','b':(1)2}", 4),
    ],
)
def test_group_sizes(groups: str, size: int) -> None:
    line = (
        f"ROOT %x = bf16[16,4] all-reduce(%p), replica_groups={groups}, to_apply=%add"
    )
    root = entry(P, line).computations["main"]["x"]
    assert group_size(root, 8) == size


def test_start_and_done_count_once() -> None:
    program = entry(
        P,
        f"%s = (bf16[16,4], bf16[64,4]) all-gather-start(%p), {GROUPS}",
        "ROOT %x = bf16[64,4]{1,0} all-gather-done(%s)",
    )
    assert collectives(program, 8) == [Collective("all-gather", "bf16", 4, 1, 512, 384)]


def test_fused_steps_of_one_channel_count_once() -> None:
    """As the TPU compiler writes them: start, a fusion that goes on with it, done."""
    bodies = ""
    for name, tail in (
        ("start", 'custom-call(%g), custom_call_target="AsyncCollectiveStart"'),
        ("step", "negate(%g)"),
        ("done", 'custom-call(%g), custom_call_target="AsyncCollectiveDone"'),
    ):
        bodies += (
            f"%{name} (q: bf16[16,4]) -> bf16[64,4] {{\n"
            "  %q = bf16[16,4]{1,0} parameter(0)\n"
            f"  %g = bf16[64,4]{{1,0}} all-gather(%q), {GROUPS}, dimensions={{0}}\n"
            f"  ROOT %r = bf16[64,4]{{1,0}} {tail}\n}}\n\n"
        )
    fusions = [
        f"%f{i} = bf16[64,4]{{1,0}} fusion(%p), kind=kCustom, calls=%{name}"
        for i, name in enumerate(("start", "step", "done"))
    ]
    program = entry(P, *fusions, before=bodies)
    assert collectives(program, 8) == [Collective("all-gather", "bf16", 4, 1, 512, 384)]


def test_an_all_reduce_whose_slice_is_kept_is_a_reduce_scatter() -> None:
    body = (
        "%scatter (q: bf16[16,4], i: s32[]) -> bf16[4,4] {\n"
        "  %q = bf16[16,4]{1,0} parameter(0)\n"
        "  %i = s32[] parameter(1)\n"
        f"  %g = bf16[16,4]{{1,0}} all-reduce(%q), {GROUPS}, to_apply=%add\n"
        "  ROOT %r = bf16[4,4]{1,0} dynamic-slice(%g, %i, %i), "
        "dynamic_slice_sizes={4,4}\n}\n\n"
    )
    fusion = "ROOT %f = bf16[4,4] fusion(%p, %i), kind=kCustom, calls=%scatter"
    program = entry(P, "%i = s32[] constant(0)", fusion, before=body)
    expected = Collective("reduce-scatter", "bf16", 4, 1, 128, 96)
    assert collectives(program, 8) == [expected]


def test_several_arrays_count_once_and_keep_their_types() -> None:
    program = entry(
        P,
        "%q = f32[2]{0} constant({1, 2})",
        "ROOT %x = (bf16[16,4]{1,0}, f32[2]{0}) all-reduce(%p, /*index=1*/%q), "
        f"{GROUPS}, to_apply=%add",
    )
    assert collectives(program, 8) == [
        Collective("all-reduce", "bf16", 4, 1, 128, 192),
        Collective("all-reduce", "f32", 4, 0, 8, 12),
    ]


def test_a_compiled_program_on_eight_devices() -> None:
    """Rows over 8 devices: a product that needs all of w, and a sum over all."""
    mesh = make_mesh({"data": 1, "fsdp": 8, "tensor": 1}, jax.devices()[:8])
    cut = NamedSharding(mesh, PartitionSpec("fsdp"))
    whole = NamedSharding(mesh, PartitionSpec())

    def gather(w: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(w, whole)

    w = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=cut)
    text = jax.jit(gather, out_shardings=whole).lower(w).compile().as_text()
    received = 64 * 32 * 4 * 7 // 8
    (row,) = collectives(hlo.parse(str(text)), 8)
    assert row == Collective("all-gather", "f32", 8, 1, 64 * 32 * 4, received)

    total = jax.jit(lambda w: w.sum(0), out_shardings=whole)
    text = total.lower(w).compile().as_text()
    (row,) = collectives(hlo.parse(str(text)), 8)
    assert row == Collective("all-reduce", "f32", 8, 1, 32 * 4, 2 * 32 * 4 * 7 // 8)
