"""The results as a table in Markdown."""

from collections.abc import Mapping
from typing import Any

from benchmarks.train_step.work import Work

HEAD = (
    "| side | parameters, M | GFLOPs a step | CPU-s a step (least .. most) "
    "| images a CPU-s | ours / it | GFLOP/s | share of peak | memory, MiB |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def table(work: Work, results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line of what was done, a row for every side, a line of what did it."""
    ours = results["ours"]
    rows = [row(name, result, ours) for name, result in results.items()]
    versions = {k: v for r in results.values() for k, v in r["versions"].items()}
    counted = f"{(ours['compiler_flops'] or 0) / 1e9:.0f}"
    shape = f"batch {work.batch}, {work.size}x{work.size}, float32"
    peak = f"{ours['peak_flops'] / 1e9:.1f} GFLOP/s and CPU-second"
    return "\n".join(
        [
            f"{work.method}, {work.model}, {shape}, threads: {work.threads}; medians "
            f"of {len(ours['steps'])} rounds",
            "",
            HEAD,
            *rows,
            "",
            f"Device: {ours['device']}. Peak: {peak}, a float32 product of 2048x2048. "
            f"GFLOPs are counted by us for ours (the compiler counts {counted}, loops "
            f"once) and by PyTorch for the others. "
            f"Versions: {', '.join(f'{k} {v}' for k, v in sorted(versions.items()))}.",
        ]
    )


def row(name: str, result: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The numbers of one side; the ratio is above 1 where ours is faster."""
    least, most = result["cpu_seconds_range"]
    ratio = result["cpu_seconds"] / ours["cpu_seconds"]
    rate = result["flops"] / result["cpu_seconds"]
    cells = [
        name,
        f"{result['parameters'] / 1e6:.2f}",
        f"{result['flops'] / 1e9:.0f}",
        f"{result['cpu_seconds']:.2f} ({least:.2f} .. {most:.2f})",
        f"{result['images_per_cpu_second']:.2f}",
        f"{ratio:.2f}",
        f"{rate / 1e9:.1f}",
        f"{rate / ours['peak_flops']:.0%}",
        f"{result['memory_bytes'] / 2**20:.0f}",
    ]
    return f"| {' | '.join(cells)} |"
