"""What the measured samplers say, computed: the numbers that the document quotes."""

from collections.abc import Sequence

from benchmarks.samplers.layout import (
    EMPTY,
    Results,
    budgets_of,
    find,
    markdown,
    methods_of,
    preset_section,
    presets_of,
    show,
    significant,
)

FEW_CALLS = (8, 16, 32)


def report(results: Results) -> str:
    """The summary, then the tables of every measured preset."""
    sections = [preset_section(results, preset) for preset in presets_of(results)]
    return "\n\n".join([summary(results), *sections])


def summary(results: Results) -> str:
    """What the samplers cost, lose and give back, over all presets."""
    return "\n\n".join(
        [
            f"### Summary\n\n{results['num_samples']} samples, seed {results['seed']}. "
            "Network calls made, of those allowed (in all other tables: allowed):",
            calls_table(results),
            "Variance ratio:",
            variance_table(results),
            "Share of DDIM's Fréchet distance, above the floor, that another sampler "
            f"takes back (`{EMPTY}`: DDIM is within two spreads of the floor):",
            share_table(results),
            "aDDIM against Heun: the calls at which its Fréchet distance is lower, and "
            "higher, by more than two spreads of the floor. They tie at all others:",
            duel_table(results, "frechet_distance"),
            "The same of the sliced Wasserstein distance:",
            duel_table(results, "sliced_wasserstein"),
            "`x_var`: `E||x - x_hat||^2 / d` as measured, and `0.1 / (2 + SNR)`:",
            x_variance_table(results),
        ]
    )


def few(results: Results) -> list[int]:
    """Those of `FEW_CALLS` that were measured."""
    return [n for n in FEW_CALLS if n in budgets_of(results)]


def calls_table(results: Results) -> str:
    """The network calls that each sampler makes within a budget."""
    budgets, rows = budgets_of(results), []
    for method in methods_of(results):
        calls = [
            [
                find(results, preset, method, n, "calls")
                for preset in presets_of(results)
            ]
            for n in budgets
        ]
        made = [next((c for c in column if c is not None), EMPTY) for column in calls]
        rows.append([method, *map(str, made)])
    return markdown(["allowed", *map(str, budgets)], rows)


def variance_table(results: Results) -> str:
    """The variance ratio of every sampler at a few calls."""
    methods, rows = methods_of(results), []
    for preset in presets_of(results):
        for n in few(results):
            ratios = [find(results, preset, m, n, "variance_ratio") for m in methods]
            cells = [show("variance_ratio", ratio) for ratio in ratios]
            rows.append([f"{preset}, {n}", *cells])
    return markdown(["preset, calls", *methods], rows)


def share_taken_back(
    results: Results, preset: str, method: str, budget: int
) -> float | None:
    """(F_DDIM - F) / (F_DDIM - floor) of the Fréchet distances, in 1-: 1 is all of it.

    Negative where the sampler is worse than DDIM. None where one was not measured, or
    where DDIM's excess is not above two spreads of the floor.
    """
    metric = "frechet_distance"
    floor = results["floors"][preset][metric]
    of_ddim = find(results, preset, "ddim", budget, metric)
    found = find(results, preset, method, budget, metric)
    if of_ddim is None or found is None:
        return None
    excess = of_ddim - floor["mean"]
    return (of_ddim - found) / excess if excess > 2 * floor["spread"] else None


def share_table(results: Results) -> str:
    """The share of DDIM's error that every other sampler takes back at a few calls."""
    methods = [method for method in methods_of(results) if method != "ddim"]
    rows = []
    for preset in presets_of(results):
        for n in few(results):
            shares = [share_taken_back(results, preset, m, n) for m in methods]
            rows.append([f"{preset}, {n}", *map(_percent, shares)])
    return markdown(["preset, calls", *methods], rows)


def duel(
    results: Results, preset: str, metric: str, method: str, rival: str
) -> tuple[list[int], list[int]]:
    """Budgets at which `method` has a clearly lower, and a clearly higher, distance.

    Clearly: by more than two spreads of the floor.
    """
    margin = 2 * results["floors"][preset][metric]["spread"]
    lower, higher = [], []
    for n in budgets_of(results, preset):
        ours = find(results, preset, method, n, metric)
        theirs = find(results, preset, rival, n, metric)
        if ours is None or theirs is None:
            continue
        if ours < theirs - margin:
            lower.append(n)
        elif ours > theirs + margin:
            higher.append(n)
    return lower, higher


def duel_table(results: Results, metric: str) -> str:
    """Where each aDDIM has a lower or higher distance than each Heun."""
    names = methods_of(results)
    methods = [name for name in names if name.startswith("addim")]
    rivals = [name for name in names if name.startswith("heun")]
    rows = []
    for preset in presets_of(results):
        budgets = budgets_of(results, preset)
        for method in methods:
            cells = []
            for rival in rivals:
                lower, higher = duel(results, preset, metric, method, rival)
                words = [f"lower {spans(lower, budgets)}"] if lower else []
                words += [f"higher {spans(higher, budgets)}"] if higher else []
                cells.append("; ".join(words) or EMPTY)
            rows.append([f"{preset}, {method}", *cells])
    return markdown(["preset, sampler", *rivals], rows)


def spans(chosen: Sequence[int], among: Sequence[int]) -> str:
    """Which of the increasing numbers `among` were chosen, such as `1-4, 16`."""
    parts: list[list[int]] = []
    for index, number in enumerate(among):
        if number not in chosen:
            continue
        if parts and index and parts[-1][-1] == among[index - 1]:
            parts[-1].append(number)
        else:
            parts.append([number])
    names = [f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts]
    return ", ".join(names)


def _percent(share: float | None) -> str:
    if share is None:
        return EMPTY
    return f"{share:.0%}" if share >= -1 else "< -100%"


def x_variance_table(results: Results) -> str:
    """x_var over time: measured on each preset, and the analytic form."""
    measured = results["x_variance"]
    times = [t for t, _ in results["analytic_x_variance"]]
    rows = [
        [preset, *(significant(value) for _, value in measured[preset])]
        for preset in presets_of(results)
    ]
    analytic = [significant(value) for _, value in results["analytic_x_variance"]]
    header = ["preset", *(f"t = {t:g}" for t in times)]
    return markdown(header, [*rows, ["analytic", *analytic]])
