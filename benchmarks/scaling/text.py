"""Plans as the tables of docs/scaling.md."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from benchmarks.scaling.layout import CHIPS, PAPER, WEAK, Row
from multistep_cm.reporting.tables import align

Plans: TypeAlias = Mapping[Row, Mapping[str, Any]]
"""What `plan --output` wrote for a row."""

BF16_BYTES = 2
USES = {"cd": 4, "ct": 3}
"""How often a step needs each weight: the student's forward and its backward pass, its
target, and in CD the teacher."""

MB = 1e6
REDUCTIONS = ("reduce-scatter", "all-reduce", "collective-permute")


def printed_plans(printed: Mapping[Row, str]) -> str:
    """The paper's runs, each with its command, as the command prints them."""
    parts = []
    for row in PAPER:
        if row in printed:
            parts.append(f"**{row.size}, {row.stage.upper()}, {row.topology}**\n")
            parts.append(f"```\n{printed[row].strip()}\n```\n")
    return "\n".join(parts).strip()


def chips_table(plans: Plans) -> str:
    """Memory, traffic and speed on every chip."""
    heading = (
        "config",
        "slice",
        "parts",
        "memory of a device",
        "gathered",
        "least",
        "gradients",
        "least",
        "steps/s",
        "MFU",
        "compiled in",
    )
    rows = [heading]
    for row in CHIPS:
        if row not in plans:
            continue
        plan = plans[row]
        # A device need not receive its own part.
        others = 1 - 1 / plan["num_devices"]
        least = plan["parameters"] * BF16_BYTES * others / MB
        gathers = least * USES[row.stage] * row.accumulation
        sums = least * row.accumulation
        used, usable = plan["used_per_device_bytes"], plan["hbm_per_device_bytes"]
        rows.append(
            (
                f"{row.size} {row.stage.upper()}" + ("" if row.flags else ", no flags"),
                row.topology,
                f"{row.accumulation}",
                f"{used / 2**30:.2f} of {usable / 2**30:.2f} GiB",
                f"{gathered(plan) / MB:,.0f} MB",
                f"{gathers:,.0f}",
                f"{reduced(plan) / MB:,.0f} MB",
                f"{sums:,.0f}",
                span(plan["steps_per_second"], ".2f"),
                span([100 * share for share in plan["mfu"]], ".0f") + " %",
                f"{plan['compile_seconds']:.0f} s",
            )
        )
    return align(rows)


def weak_table(plans: Plans) -> str:
    """Equal work for each chip: what more chips cost."""
    rows = [
        (
            "slice",
            "chips",
            "batch",
            "cycles",
            "interconnect",
            "steps/s",
            "slowest against 8 chips",
        )
    ]
    found = [row for row in WEAK if row in plans]
    for row in found:
        plan, first = plans[row], plans[found[0]]
        roofline = plan["roofline"]
        share = first["roofline"]["slowest_seconds"] / roofline["slowest_seconds"]
        rows.append(
            (
                row.topology,
                f"{plan['num_chips']}",
                f"{row.batch_size:,}",
                f"{1000 * roofline['cycles_seconds']:.0f} ms",
                f"{1000 * roofline['interconnect_seconds']:.1f} ms",
                span(plan["steps_per_second"], ".2f"),
                f"{100 * share:.0f} %",
            )
        )
    return align(rows)


def gathered(plan: Mapping[str, Any]) -> float:
    """Bytes that a device receives of weights in a step."""
    return link_bytes(plan, ("all-gather",))


def reduced(plan: Mapping[str, Any]) -> float:
    """Bytes that a device receives of sums in a step."""
    return link_bytes(plan, REDUCTIONS)


def link_bytes(plan: Mapping[str, Any], kinds: Sequence[str]) -> float:
    """Over the links of one device, by kind of collective."""
    rows = plan["collectives"]
    return float(sum(row["link_bytes"] for row in rows if row["kind"] in kinds))


def span(ends: Sequence[float], form: str) -> str:
    """`low to high`, once if both read alike."""
    low, high = (format(end, form) for end in ends)
    return low if low == high else f"{low} to {high}"
