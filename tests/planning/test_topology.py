"""Names of topologies, and the table of chips."""

import importlib.util
import math

import jax
import pytest

from multistep_cm.errors import UserError
from multistep_cm.planning import topology
from multistep_cm.planning.chips import CHIPS, GIB
from multistep_cm.planning.topology import get_devices, parse_topology, slices


@pytest.mark.parametrize(
    ("name", "devices", "links"),
    [
        ("v5e:1x1", 1, 0),
        ("v5e:2x4", 8, 3),
        ("v5e:8x8", 64, 4),
        ("v4:2x2x1", 4, 2),
        ("v4:4x4x4", 64, 6),
        ("v5p:2x2x2", 8, 3),
        ("v3:2x2", 8, 2),  # two devices a chip
        ("tpu7x:2x2x1", 8, 2),
        ("cpu:8", 8, 2),
    ],
)
def test_names(name: str, devices: int, links: int) -> None:
    parsed = parse_topology(name)
    assert parsed.num_devices == devices
    assert parsed.links == links


@pytest.mark.parametrize("kind", CHIPS)
def test_every_slice_of_every_chip_has_a_name(kind: str) -> None:
    names = slices(kind)
    assert len(set(names)) == len(names)
    for name in names:
        assert parse_topology(f"{kind}:{name}").chip is CHIPS[kind]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e", "expected a TPU slice such as v5e:8x8"),
        ("v5e-64", "expected a TPU slice"),
        ("v5e:8*8", "expected a TPU slice"),
        ("v5e:0x8", "expected a TPU slice"),
        (":8x8", "no TPU ''"),
        ("", "expected a TPU slice"),
        ("cpu:", "expected a TPU slice"),
        ("cpu:2x4", "expected cpu:N"),
        ("cpu:1000", "cpu:N with N from 1 to"),
        ("v5:8x8", "did you mean v5"),
        ("v9z:8x8", "expected one of v3, v4, v5e, v5p, v6e, tpu7x, or cpu"),
        ("v5e:8x7", "v5e:8x8"),
        ("v5e:8x4", "v5e:4x8"),
        ("v5e:3x3", "v5e:2x4"),
        ("v5e:32x32", "v5e:16x16"),
        ("v5e:4x4x4", "v5e:8x8"),
        ("v4:8x8", "v4:4x4x4"),
        ("v5p:8x4x4", "v5p:4x4x8"),
        ("v5p:4x4x5", "v5p:4x4x4"),
    ],
)
def test_names_of_nothing(name: str, said: str) -> None:
    with pytest.raises(UserError, match="--topology is") as caught:
        parse_topology(name)
    assert said in str(caught.value)


def test_without_the_compiler_it_says_which_extra_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'multistep_cm\[tpu\]'"):
        get_devices(parse_topology("v5e:2x2"))


def test_cpu_devices_are_those_that_there_are() -> None:
    assert get_devices(parse_topology("cpu:4")) == jax.devices()[:4]
    with pytest.raises(UserError, match="with 8 CPU devices, fewer than the 9"):
        get_devices(parse_topology("cpu:9"))


def test_the_compiler_s_environment_changes_no_other_variable() -> None:
    before = {"HOME": "/home/a", "JAX_PLATFORMS": "cuda"}
    after = topology.compiler_environment(before)
    assert after["HOME"] == "/home/a"
    assert after["JAX_PLATFORMS"] == "cpu"
    assert topology.compiler_environment(after) == after
    assert before == {"HOME": "/home/a", "JAX_PLATFORMS": "cuda"}


@pytest.mark.parametrize("kind", CHIPS)
def test_the_figures_of_a_chip_agree_with_each_other(kind: str) -> None:
    chip = CHIPS[kind]
    # Whole matrix units: multipliers are peak / (2 x clock).
    multipliers = chip.peak_flops / chip.devices / (2 * chip.clock_hz)
    assert multipliers / (128 * 128) == pytest.approx(
        round(multipliers / (128 * 128)), rel=0.01
    )
    assert round(multipliers / (128 * 128)) in (2, 4, 8, 16)
    assert chip.links == 2 * (3 if len(slices(kind)[0].split("x")) == 3 else 2)
    assert 0.9 < chip.hbm_bytes_per_second / 1e9 / 900 < 10
    assert 15 * GIB < chip.usable_bytes < 96 * GIB
    assert math.isfinite(chip.link_bytes_per_second)
    assert chip.source.startswith("https://")
