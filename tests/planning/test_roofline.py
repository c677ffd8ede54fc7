"""The roofline against arithmetic by hand."""

import pytest

from multistep_cm.planning.chips import Chip
from multistep_cm.planning.roofline import Work, estimate, link_bandwidth
from multistep_cm.planning.topology import Topology

CHIP = Chip(
    peak_flops=100.0,
    hbm_bytes_per_second=10.0,
    links=4,
    link_bytes_per_second=2.0,
    usable_bytes=1,
    clock_hz=5.0,
    source="",
)
SQUARE = Topology("v5e:4x4", "v5e", (4, 4))
WORK = Work(
    model_flops=1600, hardware_flops=3200, hbm_bytes=10, link_bytes=4, cycles=20
)


def test_times_range_and_utilization() -> None:
    roofline = estimate(WORK, CHIP, SQUARE)
    assert roofline.compute_seconds == 3200 / (16 * 100)
    assert roofline.hbm_seconds == 1
    assert roofline.interconnect_seconds == 4 / (4 * 2)
    assert roofline.cycles_seconds == 4
    assert roofline.fastest_seconds == 2
    assert roofline.slowest_seconds == 4 + 2 * 0.5
    assert roofline.steps_per_second == (1 / 5, 1 / 2)
    # Half of the work is done twice: at peak the useful half remains.
    assert roofline.mfu == (0.2, 0.5)
    assert roofline.bound == "compute"


def test_without_the_compiler_s_cycles_the_slowest_is_the_slowest_part() -> None:
    work = Work(1600, 1600, hbm_bytes=30, link_bytes=0, cycles=0)
    roofline = estimate(work, CHIP, SQUARE)
    assert roofline.slowest_seconds == roofline.fastest_seconds == 3
    assert roofline.bound == "HBM"


@pytest.mark.parametrize(
    ("shape", "links"), [((1, 1), 0), ((2, 2), 2), ((2, 4), 3), ((8, 8), 4)]
)
def test_a_small_slice_uses_fewer_links(shape: tuple[int, int], links: int) -> None:
    topology = Topology("", "v5e", shape)
    assert link_bandwidth(CHIP, topology) == 2.0 * links
    assert estimate(WORK, CHIP, topology).interconnect_seconds >= 0
