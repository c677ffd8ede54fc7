"""How fast a step can be on a chip, from what it computes, moves and sends: estimates.

Three times, each as if the chip did nothing else and did it at its public peak:

    compute       our count of FLOPs (with recomputation) / peak
    hbm           estimated bytes between HBM and chip / bandwidth
    interconnect  bytes received over links / bandwidth of the links in use

and one by the compiler: its estimated cycles / clock, one instruction after another,
collectives not included. The range that they leave:

    fastest       max(compute, hbm, interconnect): all of it at once, at peak
    slowest       max(cycles, compute, hbm) + 2 interconnect: nothing overlaps with
                  collectives, and these get half of the links (no ring closes itself
                  in a slice that is no full torus)

MFU is model FLOPs (without recomputation) / (peak of all chips x seconds).
"""

import dataclasses

from multistep_cm.planning.chips import Chip
from multistep_cm.planning.topology import Topology


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step costs.

    Attributes:
        model_flops: of all devices, nothing computed twice.
        hardware_flops: of all devices, as the step does it.
        hbm_bytes: of one device.
        link_bytes: received by one device.
        cycles: of one device, by the compiler; 0 when it gives none.
    """

    model_flops: int
    hardware_flops: int
    hbm_bytes: int
    link_bytes: int
    cycles: int


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step, and what they come to; see the module."""

    compute_seconds: float
    hbm_seconds: float
    interconnect_seconds: float
    cycles_seconds: float
    fastest_seconds: float
    slowest_seconds: float
    mfu: tuple[float, float]

    @property
    def steps_per_second(self) -> tuple[float, float]:
        """The slowest and the fastest."""
        return 1 / self.slowest_seconds, 1 / self.fastest_seconds

    @property
    def bound(self) -> str:
        """What the fastest step waits for."""
        times = {
            "compute": self.compute_seconds,
            "HBM": self.hbm_seconds,
            "interconnect": self.interconnect_seconds,
        }
        return max(times, key=lambda name: times[name])


def link_bandwidth(chip: Chip, topology: Topology) -> float:
    """Bytes per second that one device receives when all its links are busy."""
    return chip.link_bytes_per_second * topology.links / chip.devices


def estimate(work: Work, chip: Chip, topology: Topology) -> Roofline:
    """The roofline of a step that runs on every device of the topology."""
    devices, peak = topology.num_devices, chip.peak_flops / chip.devices
    compute = work.hardware_flops / (devices * peak)
    hbm = work.hbm_bytes * chip.devices / chip.hbm_bytes_per_second
    bandwidth = link_bandwidth(chip, topology)
    interconnect = work.link_bytes / bandwidth if work.link_bytes and bandwidth else 0.0
    cycles = work.cycles / chip.clock_hz
    fastest = max(compute, hbm, interconnect)
    slowest = max(cycles, compute, hbm) + 2 * interconnect
    ideal = work.model_flops / (devices * peak)
    return Roofline(
        compute_seconds=compute,
        hbm_seconds=hbm,
        interconnect_seconds=interconnect,
        cycles_seconds=cycles,
        fastest_seconds=fastest,
        slowest_seconds=slowest,
        mfu=(ideal / slowest, ideal / fastest),
    )
