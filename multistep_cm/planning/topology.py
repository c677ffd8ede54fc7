"""`v5e:8x8` and `cpu:8`: names of sets of devices, and the devices themselves.

The names of TPU slices are those of Google Cloud: chips along each dimension of the
torus. v5e and v6e are flat; v4, v5p and tpu7x have three dimensions.
"""

import dataclasses
import difflib
import importlib.util
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence

import jax

from multistep_cm.errors import UserError
from multistep_cm.planning.chips import CHIPS, Chip

MOST_CPU_DEVICES = 512

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_LARGE_FLAT = ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32")
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
LARGEST = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
"""Chips of the largest slice of three dimensions that can be had."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that a program is compiled for.

    Attributes:
        name: as it was asked for.
        kind: a generation of `CHIPS`, or "cpu".
        shape: chips along each dimension of the interconnect; (n,) for CPU devices.
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip | None:
        """Public figures; None for simulated CPU devices, which have none."""
        return CHIPS.get(self.kind)

    @property
    def num_devices(self) -> int:
        """As JAX counts them."""
        return math.prod(self.shape) * (self.chip.devices if self.chip else 1)

    @property
    def links(self) -> int:
        """Links that a chip has to others of the slice: one where two chips stand in a
        row, two where there are more, none where it is alone."""
        return sum(min(size - 1, 2) for size in self.shape)


def parse_topology(name: str) -> Topology:
    """A topology by its name; raises UserError, with the nearest names, for others."""
    kind, colon, sizes = name.partition(":")
    if not colon or not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", sizes):
        raise UserError(
            f"--topology is {name!r}, expected a TPU slice such as v5e:8x8 or "
            "v5p:4x4x4, or cpu:8 for simulated CPU devices"
        )
    shape = tuple(int(size) for size in sizes.split("x"))
    if kind == "cpu":
        if len(shape) > 1 or shape[0] > MOST_CPU_DEVICES:
            raise UserError(
                f"--topology is {name!r}, expected cpu:N with N from 1 to "
                f"{MOST_CPU_DEVICES}"
            )
        return Topology(name, kind, shape)
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"--topology is {name!r}, but there is no TPU {kind!r}: expected one of "
            f"{', '.join(CHIPS)}, or cpu{hint}"
        )
    if not _exists(kind, shape):
        names = ", ".join(f"{kind}:{near}" for near in nearest(kind, shape))
        raise UserError(
            f"--topology is {name!r}, but there is no such slice of {kind}; the "
            f"nearest are {names}"
        )
    return Topology(name, kind, shape)


def slices(kind: str) -> list[str]:
    """The shapes in which Google Cloud rents this generation, by size."""
    if kind in ("v5e", "v6e"):
        return list(_FLAT)
    if kind == "v3":
        return list(_LARGE_FLAT)
    most = LARGEST[kind]
    steps = range(4, 33, 4)  # cubes of 4x4x4 chips, put together
    cubes = [
        shape
        for shape in itertools.combinations_with_replacement(steps, 3)
        if math.prod(shape) <= most
    ]
    cubes.sort(key=lambda shape: (math.prod(shape), shape[-1]))
    return [*_SMALL, *("x".join(map(str, shape)) for shape in cubes)]


def nearest(kind: str, shape: tuple[int, ...]) -> list[str]:
    """Up to three slices: the same sizes in another order, then the nearest in chips.

    Ties go to the one that is spelled most alike.
    """
    known, asked = slices(kind), "x".join(map(str, shape))
    chips = math.prod(shape)

    def distance(name: str) -> tuple[bool, float, float]:
        sizes = [int(size) for size in name.split("x")]
        ratio = abs(math.log(math.prod(sizes) / chips))
        alike = difflib.SequenceMatcher(None, name, asked).ratio()
        return sorted(sizes) != sorted(shape), ratio, -alike

    return sorted(known, key=distance)[:3]


def get_devices(topology: Topology) -> Sequence[jax.Device]:
    """The devices, to compile for and, except on a CPU, for nothing else.

    Raises UserError when the `tpu` extra is absent, when the compiler refuses the name,
    and when this process has already started with fewer CPU devices.
    """
    if topology.kind == "cpu":
        return _cpu_devices(topology.num_devices)
    check_compiler()
    from jax.experimental import topologies

    chip = CHIPS[topology.kind]
    options: dict[str, object] = dict(chip.options)
    if topology.shape == (1, 1):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        description = topologies.get_topology_desc(
            topology_name=topology.name, platform="tpu", **options
        )
    except (RuntimeError, NotImplementedError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"--topology is {topology.name!r}: the TPU compiler refuses it ({said})"
        ) from error
    return description.devices


def check_compiler() -> None:
    """Raise UserError when the TPU compiler is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the TPU compiler is not installed: pip install 'multistep_cm[tpu]', or "
            "plan for simulated CPU devices by --topology=cpu:8"
        )


def compiler_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment in which the TPU compiler starts quietly, without a TPU.

    It reads these as it is loaded. Without them it complains that this is no TPU VM,
    and refuses to start beside any other process that has loaded it.
    """
    return {
        **variables,
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any that exists; the topology decides
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }


def _exists(kind: str, shape: tuple[int, ...]) -> bool:
    return "x".join(map(str, shape)) in slices(kind)


def _cpu_devices(count: int) -> Sequence[jax.Device]:
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # JAX has started: it keeps the devices that it has
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"this process has started JAX with {len(devices)} CPU devices, fewer than "
            f"the {count} of --topology=cpu:{count}"
        )
    return devices[:count]


def host_memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
