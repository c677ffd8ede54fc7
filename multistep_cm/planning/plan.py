"""The plan of a config on a topology: every figure, and where it comes from."""

import dataclasses
import json
from collections.abc import Mapping

from multistep_cm.planning.advice import Attempt
from multistep_cm.planning.collectives import Collective
from multistep_cm.planning.compiling import Memory, gib
from multistep_cm.planning.roofline import Roofline

PROVENANCE: Mapping[str, str] = {
    "parameters": "counted",
    "flops_per_step": "counted",
    "hardware_flops_per_step": "counted",
    "hbm_per_device_bytes": "compiled",
    "used_per_device_bytes": "compiled",
    "headroom_bytes": "compiled",
    "memory": "compiled",
    "fits": "compiled",
    "tried": "compiled",
    "compile_seconds": "measured",
    "compiler_flops": "compiled",
    "compiler_bytes": "compiled",
    "collectives": "compiled",
    "collective_bytes": "compiled",
    "collective_link_bytes": "compiled",
    "hbm_bytes_per_step": "estimated",
    "estimated_cycles": "estimated",
    "roofline": "estimated",
    "steps_per_second": "estimated",
    "mfu": "estimated",
}
"""Where a figure of a plan comes from.

counted: by us, from shapes and from the jaxpr. compiled: read in the compiled program,
or said by the compiler. measured: here and now. estimated: made of the others and of
public figures of the chip, or the compiler's own guess.
"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run would cost; sizes in bytes, of one device where not said otherwise.

    Attributes:
        specification, overrides: the config as it was asked for.
        mesh: axis sizes.
        flops_per_step: of all devices; products and convolutions, nothing twice.
        hardware_flops_per_step: the same with what is computed again (model.remat).
        hbm_per_device_bytes: what a program may use of a device's memory. Of simulated
            CPU devices: an equal share of this machine's.
        used_per_device_bytes: at least so much when it does not fit; None when the
            compiler does not say.
        compiler_flops, compiler_bytes: the compiler's totals of one device and one
            call of the program. They count a loop's body once.
        collectives: of one device and one step, as in `collectives.py`.
        hbm_bytes_per_step: as in `traffic.py`.
        estimated_cycles: the compiler's, loops multiplied; as in `hlo.py`.
        unknown_loops: loops that count once, because their length cannot be read.
        roofline: None without a chip, or when it does not fit.
        tried: changed configs that were compiled, because this one does not fit.
        compiler_flags: variables of the environment that change what is compiled.
    """

    topology: str
    num_devices: int
    num_chips: int
    specification: str
    overrides: Mapping[str, str]
    method: str
    batch_size: int
    accumulation: int
    remat: str
    mesh: Mapping[str, int]
    parameters: int
    flops_per_step: int
    hardware_flops_per_step: int
    hbm_per_device_bytes: int
    used_per_device_bytes: int | None
    memory: Memory | None
    fits: bool
    tried: tuple[Attempt, ...]
    compile_seconds: float
    compiler_flops: float | None
    compiler_bytes: float | None
    collectives: tuple[Collective, ...]
    hbm_bytes_per_step: int | None
    estimated_cycles: int | None
    unknown_loops: tuple[str, ...]
    roofline: Roofline | None
    chip_source: str
    compiler_flags: Mapping[str, str]
    versions: Mapping[str, str]

    @property
    def headroom_bytes(self) -> int | None:
        """Memory that is left; negative: that is missing."""
        used = self.used_per_device_bytes
        return None if used is None else self.hbm_per_device_bytes - used

    @property
    def solution(self) -> Attempt | None:
        """The change with which it fits, when it does not without."""
        return next((attempt for attempt in self.tried if attempt.fits), None)


def verdict(plan: Plan) -> str:
    """One sentence: whether it fits, by how much, and what to change if not."""
    usable = gib(plan.hbm_per_device_bytes)
    if plan.fits:
        if plan.used_per_device_bytes is None or plan.headroom_bytes is None:
            return "fits"
        used, left = gib(plan.used_per_device_bytes), gib(plan.headroom_bytes)
        return f"fits: {used} of {usable} of each device, {left} left"
    used = "more than there is"
    if plan.used_per_device_bytes is not None:
        used = f"at least {gib(plan.used_per_device_bytes)}"
    sentence = f"does not fit: it needs {used} of {usable} of each device"
    if plan.solution:
        needs = ""
        if plan.solution.used_bytes is not None:
            needs = f", then {gib(plan.solution.used_bytes)}"
        return f"{sentence}; it does with {plan.solution.flags}{needs}"
    if plan.tried:
        return f"{sentence}; nor does {plan.tried[-1].flags}: take more devices"
    return f"{sentence}; no other config was tried"


def to_json(plan: Plan) -> str:
    """Indented JSON: the attributes of `Plan`, some sums, and `provenance`."""
    content = dataclasses.asdict(plan)
    content["headroom_bytes"] = plan.headroom_bytes
    content["collective_bytes"] = sum(row.bytes for row in plan.collectives)
    content["collective_link_bytes"] = sum(row.link_bytes for row in plan.collectives)
    content["steps_per_second"] = plan.roofline and plan.roofline.steps_per_second
    content["mfu"] = plan.roofline and plan.roofline.mfu
    content["verdict"] = verdict(plan)
    content["provenance"] = provenance(plan)
    return json.dumps(content, indent=2) + "\n"


def provenance(plan: Plan) -> dict[str, str]:
    """`PROVENANCE`, as far as it differs from plan to plan."""
    is_cpu = plan.topology.startswith("cpu:")
    changed = {"hbm_per_device_bytes": "measured"} if is_cpu else {}
    return {**PROVENANCE, **changed}
