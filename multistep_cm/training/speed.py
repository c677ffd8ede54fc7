"""How much of the peak of its devices a run reaches (MFU), where the peak is known.

MFU is model FLOPs per second over the public peak of bfloat16 products, of all devices
together: FLOPs as `planning/flops.py` counts them, of the step without recomputation.
"""

import dataclasses
from collections.abc import Mapping

from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm.planning.chips import CHIPS
from multistep_cm.planning.flops import count_flops
from multistep_cm.training import setup
from multistep_cm.training.compilation import abstract_frozen

TPU_KINDS: Mapping[str, str] = {
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5e": "v5e",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6e": "v6e",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
}
"""`device_kind` of JAX to a generation of `CHIPS`."""

GPU_PEAKS: Mapping[str, float] = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""How a `device_kind` begins to FLOP/s, from NVIDIA's data sheets: bfloat16 on tensor
cores, without sparsity. The first that fits counts."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """What images per second are held against.

    Attributes:
        flops_per_image: model FLOPs of a train step for one image.
        peak_flops: FLOP/s of all devices.
    """

    flops_per_image: float
    peak_flops: float

    def mfu(self, images_per_second: float) -> float:
        """Model FLOPs utilisation, 0 to 1."""
        return images_per_second * self.flops_per_image / self.peak_flops


def make_speed(config: ConfigDict, mesh: Mesh) -> Speed | None:
    """Trace the train step and count; None, at once, where no peak is known."""
    peaks = [device_peak(device.device_kind) for device in mesh.devices.flat]
    known = [peak for peak in peaks if peak is not None]
    if len(known) < len(peaks):
        return None
    return Speed(flops_per_image(config, mesh), sum(known))


def device_peak(kind: str) -> float | None:
    """Peak FLOP/s of one device of this `device_kind`; None when it is not known."""
    if kind in TPU_KINDS:
        chip = CHIPS[TPU_KINDS[kind]]
        return chip.peak_flops / chip.devices
    return next((p for name, p in GPU_PEAKS.items() if kind.startswith(name)), None)


def flops_per_image(config: ConfigDict, mesh: Mesh) -> float:
    """Of a train step, nothing computed twice."""
    config = config.copy_and_resolve_references()
    config.model.remat = "none"
    flops = count_flops(
        setup.make_step(config, mesh),
        setup.abstract_state(config, mesh),
        setup.abstract_batch(config, mesh),
        abstract_frozen(config, mesh),
    )
    return flops / (config.training.steps_per_call * config.training.batch_size)
