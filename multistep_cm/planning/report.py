"""A plan as text: one table of figures, each with where it comes from."""

from collections.abc import Iterator

from multistep_cm.planning.compiling import gib
from multistep_cm.planning.plan import Plan, provenance, verdict
from multistep_cm.reporting.tables import align

Row = tuple[str, str, str]
"""A figure's name, its value, and where it comes from."""


def format_plan(plan: Plan) -> str:
    """Markdown tables: figures, collectives, what was tried; then the verdict."""
    parts = [align([("figure", "value", "how"), *_figures(plan)])]
    if plan.collectives:
        parts.append(align([*_collectives(plan)]))
    if plan.tried:
        heading = ("tried, because it does not fit", "needs", "fits")
        rows = [
            (
                attempt.flags,
                "?" if attempt.used_bytes is None else gib(attempt.used_bytes),
                "yes" if attempt.fits else "no",
            )
            for attempt in plan.tried
        ]
        parts.append(align([heading, *rows]))
    parts.append(f"{verdict(plan)} (compiled)")
    return "\n\n".join(parts)


def _figures(plan: Plan) -> Iterator[Row]:
    how = provenance(plan)
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    chips = "" if plan.num_chips == plan.num_devices else f" on {plan.num_chips} chips"
    yield "devices", f"{plan.num_devices} ({plan.topology}){chips}", "asked"
    yield "mesh", mesh, "config"
    yield "batch", f"{plan.batch_size:,} in {plan.accumulation} part(s)", "config"
    yield "parameters", f"{plan.parameters:,}", how["parameters"]
    yield "FLOPs a step", flops(plan.flops_per_step), how["flops_per_step"]
    yield (
        f"  with recomputation (remat {plan.remat})",
        flops(plan.hardware_flops_per_step),
        how["hardware_flops_per_step"],
    )
    yield from _memory(plan)
    if plan.compiler_flops is not None:
        yield (
            "compiler's FLOPs of a device, loops once",
            flops(plan.compiler_flops),
            how["compiler_flops"],
        )
    if plan.compiler_bytes is not None:
        yield (
            "compiler's bytes of a device, loops once",
            gib(int(plan.compiler_bytes)),
            how["compiler_bytes"],
        )
    name = "compile time" if plan.memory else "time until it was refused"
    yield name, f"{plan.compile_seconds:.0f} s", how["compile_seconds"]
    yield from _speed(plan)


def _memory(plan: Plan) -> Iterator[Row]:
    how = provenance(plan)
    usable = gib(plan.hbm_per_device_bytes)
    yield "memory of a device, usable", usable, how["hbm_per_device_bytes"]
    if plan.used_per_device_bytes is not None:
        least = "" if plan.fits or plan.memory else "at least "
        used = least + gib(plan.used_per_device_bytes)
        yield "  used", used, how["used_per_device_bytes"]
    if plan.memory:
        memory = plan.memory
        for name, size in (
            ("arguments (state, batch, teacher)", memory.arguments),
            ("outputs not in their place", memory.outputs - memory.aliased),
            ("temporaries", memory.temporaries),
            ("program", memory.program),
        ):
            yield f"    {name}", gib(size), how["memory"]
    if plan.headroom_bytes is not None:
        name = "left" if plan.headroom_bytes >= 0 else "missing"
        yield f"  {name}", gib(abs(plan.headroom_bytes)), how["headroom_bytes"]


def _speed(plan: Plan) -> Iterator[Row]:
    roofline = plan.roofline
    if roofline is None or plan.hbm_bytes_per_step is None:
        return
    how = provenance(plan)
    for name, seconds in (
        ("compute alone, at peak", roofline.compute_seconds),
        (f"HBM alone ({gib(plan.hbm_bytes_per_step)})", roofline.hbm_seconds),
        ("interconnect alone", roofline.interconnect_seconds),
        (
            f"compiler's cycles ({plan.estimated_cycles:,})",
            roofline.cycles_seconds,
        ),
    ):
        yield f"time of a step: {name}", f"{number(1000 * seconds)} ms", how["roofline"]
    slow, fast = (number(rate) for rate in roofline.steps_per_second)
    yield "steps/s", f"{slow} to {fast}", how["steps_per_second"]
    yield "the fastest is bound by", roofline.bound, how["roofline"]
    yield "MFU", f"{roofline.mfu[0]:.0%} to {roofline.mfu[1]:.0%}", how["mfu"]


def _collectives(plan: Plan) -> Iterator[tuple[str, ...]]:
    yield (
        "collectives of a device in a step (compiled)",
        "type",
        "among",
        "count",
        "bytes",
        "over its links",
    )
    for row in plan.collectives:
        yield (
            row.kind,
            row.dtype,
            f"{row.group_size:,}",
            f"{row.count:,}",
            gib(row.bytes),
            gib(row.link_bytes),
        )
    received = sum(row.link_bytes for row in plan.collectives)
    yield "all", "", "", "", "", gib(received)


def flops(count: float) -> str:
    """With a prefix: 2.24 PFLOP."""
    for prefix, unit in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= unit:
            return f"{count / unit:.4g} {prefix}FLOP"
    return f"{count:.0f} FLOP"


def number(value: float) -> str:
    """Three digits; whole where it is large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
