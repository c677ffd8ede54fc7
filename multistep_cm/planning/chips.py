"""Public figures of TPU chips, and what the compiler says of their memory.

Sources:
- [v3], [v4], [v5e], [v5p], [v6e], [tpu7x]: Google Cloud's "System architecture" pages,
  https://docs.cloud.google.com/tpu/docs/GENERATION: bf16 peak, HBM and its bandwidth.
- ICI: the same pages give it in both directions together for v5e, v5p, v6e and tpu7x;
  v4 from its paper (arXiv 2304.01433: 6 links of 50 GB/s), v3 from "A domain-specific
  supercomputer for training deep neural networks" (CACM 2020: 4 links of 656 Gbit/s).
- `usable_bytes`: what the TPU compiler says that it has ("exceeds available HBM
  (15.75G)"), asked of libtpu 0.0.42. A plan asks its own compiler again.
- `clock_hz`: estimated. Peak = multipliers x 2 x clock, with the matrix units of the
  pages (v6e and tpu7x: four units of 256 x 256 a device, the smallest number of which
  the compiler's cycles for a large product do not exceed the peak).
"""

import dataclasses
from collections.abc import Mapping

GIB = 1024**3
DOCS = "https://docs.cloud.google.com/tpu/docs"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU generation; all figures are of a whole chip, except the two of a device.

    Attributes:
        peak_flops: of bfloat16 products with float32 sums, per second.
        hbm_bytes_per_second: between HBM and the chip.
        links: interconnect links of a chip in a full torus: two for each dimension.
        link_bytes_per_second: of one link, in one direction.
        devices: JAX devices of a chip: cores that are programmed one by one.
        usable_bytes: HBM of a device that a program may use.
        clock_hz: cycles per second of the compiler's estimates; estimated.
        options: arguments that make the compiler's description that of Google Cloud.
        source: where the figures are.
    """

    peak_flops: float
    hbm_bytes_per_second: float
    links: int
    link_bytes_per_second: float
    usable_bytes: int
    clock_hz: float
    source: str
    devices: int = 1
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


CHIPS: Mapping[str, Chip] = {
    "v3": Chip(
        peak_flops=123e12,
        hbm_bytes_per_second=900e9,
        links=4,
        link_bytes_per_second=82e9,
        usable_bytes=int(15.48 * GIB),
        clock_hz=0.94e9,
        devices=2,
        source=f"{DOCS}/v3",
    ),
    "v4": Chip(
        peak_flops=275e12,
        hbm_bytes_per_second=1200e9,
        links=6,
        link_bytes_per_second=50e9,
        usable_bytes=int(30.75 * GIB),
        clock_hz=1.05e9,
        # Two cores as one device, as on Google Cloud; the compiler's default is two.
        options={"chip_config_name": "megacore"},
        source=f"{DOCS}/v4",
    ),
    "v5e": Chip(
        peak_flops=197e12,
        hbm_bytes_per_second=819e9,
        links=4,
        link_bytes_per_second=50e9,
        usable_bytes=int(15.75 * GIB),
        clock_hz=1.5e9,
        source=f"{DOCS}/v5e",
    ),
    "v5p": Chip(
        peak_flops=459e12,
        hbm_bytes_per_second=2765e9,
        links=6,
        link_bytes_per_second=100e9,
        usable_bytes=int(95.74 * GIB),
        clock_hz=1.75e9,
        source=f"{DOCS}/v5p",
    ),
    "v6e": Chip(
        peak_flops=918e12,
        hbm_bytes_per_second=1638e9,
        links=4,
        link_bytes_per_second=100e9,
        usable_bytes=int(31.25 * GIB),
        clock_hz=1.75e9,
        source=f"{DOCS}/v6e",
    ),
    "tpu7x": Chip(
        peak_flops=2307e12,
        hbm_bytes_per_second=7380e9,
        links=6,
        link_bytes_per_second=100e9,
        usable_bytes=int(94.75 * GIB),
        clock_hz=2.2e9,
        devices=2,
        source=f"{DOCS}/tpu7x",
    ),
}
"""Every generation that Google Cloud rents and the compiler knows."""
