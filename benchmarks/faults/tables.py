"""The trials as Markdown: by kind, by phase of a kill, by way and layout of damage."""

import collections
from collections.abc import Callable, Sequence

from benchmarks.faults.layout import GOOD, KINDS, Record

SHOWN = (*GOOD, "error", "wrong")
"""Outcomes in the order of the columns."""

Rows = Sequence[Record]


def summary(records: Rows) -> str:
    """All tables, and what is not good in words."""
    parts = [_kinds(records)]
    kills = [record for record in records if record["kind"] in ("kill", "term")]
    if kills:
        parts += ["Kills by where they hit:", _by(kills, "phase", place_of_kill)]
        parts += ["Work that was done again after them:", _repeated(kills)]
    damage = [record for record in records if record["kind"] == "damage"]
    if damage:
        parts += ["Damage by way:", _by(damage, "way", lambda row: row.get("way", "?"))]
        parts += ["Damage by what was hit:", _by(damage, "file", place_of_damage)]
        parts += ["Damage by layout of the save:", _by(damage, "layout", _layout)]
    moved = [record["largest"] for record in records if "largest" in record]
    if moved:
        parts.append(
            f"On other meshes all values were within {max(moved):.0e} of those of the "
            "undisturbed run."
        )
    noisy = [record for record in records if record.get("tracebacks")]
    if noisy:
        parts.append(
            f"In {len(noisy)} trials threads of libraries printed tracebacks too, "
            "beside the sentence."
        )
    bad = [record for record in records if record["outcome"] not in GOOD]
    if bad:
        parts.append("Not survived:")
        parts.append("\n".join(f"- {_words(record)}" for record in bad))
    return "\n\n".join(parts)


def place_of_kill(record: Record) -> str:
    """The phase of the main thread, or what went on in the background."""
    if record["background"]:
        return BACKGROUND[record["background"]]
    return PHASES.get(record["phase"], str(record["phase"]))


BACKGROUND = {"writing": "save, written", "removing": "old step, removed"}
PHASES = {
    "start-up": "start-up (imports, devices, data)",
    "check": "start-up (imports, devices, data)",
    "restore": "restore",
    "init": "first parameters",
    "compile": "compilation",
    "step": "steps",
    "save": "save, copied",
    "wait": "save, waited for",
    "sampling": "sampling of previews",
    "end": "end",
}
"""The phases of `victim.py` as the tables call them."""


def place_of_damage(record: Record) -> str:
    """Of one damaged file, the item and what kind of file it is."""
    if record["way"].endswith("steps"):
        return "several steps"
    where = record["what"][0].split(", ", 2)[2].partition(":")[0]
    item, _, rest = where.partition("/")
    if item in ("params", "ema", "target", "optimizer") and rest:
        is_data = "/d/" in f"/{rest}/" or rest.startswith("d/")
        return "arrays: data" if is_data else f"arrays: {rest.split('/')[0]}"
    return item


def _layout(record: Record) -> str:
    return {
        "one": "1 process, 1 device",
        "sharded": "1 process, 8 devices, cut",
        "processes": "2 processes of 4 devices, cut",
    }.get(record.get("layout", ""), "?")


def _kinds(records: Rows) -> str:
    rows = []
    for kind, (words, _) in KINDS.items():
        own = [record for record in records if record["kind"] == kind]
        if own:
            rows.append((words, own))
    return _table("fault", rows)


def _by(records: Rows, name: str, key: Callable[[Record], str]) -> str:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return _table(name, ordered)


def _table(name: str, rows: Sequence[tuple[str, Rows]]) -> str:
    """A line a group, a column an outcome that there is."""
    everything = [record for _, group in rows for record in group]
    present = {record["outcome"] for record in everything}
    columns = [x for x in SHOWN if x in present or x == "wrong"]
    lines = [
        f"| {name} | trials | " + " | ".join(columns) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    for label, group in rows:
        counts = collections.Counter(record["outcome"] for record in group)
        cells = " | ".join(str(counts[column]) for column in columns)
        lines.append(f"| {label} | {len(group)} | {cells} |")
    return "\n".join(lines)


def _repeated(kills: Rows) -> str:
    """How many steps, for kills with and without a save that was being written."""
    lines = [
        "| kill | trials | no step | mean | most |",
        "|---|---:|---:|---:|---:|",
    ]
    groups = {
        "SIGTERM, stopped in order": [row for row in kills if row["in_order"]],
        "between two saves": [
            row for row in kills if not (row["in_order"] or row["unfinished_save"])
        ],
        "while a save was written": [
            row for row in kills if row["unfinished_save"] and not row["in_order"]
        ],
    }
    for name, group in groups.items():
        steps = [row["repeated"] for row in group]
        if steps:
            mean = sum(steps) / len(steps)
            cells = f"{steps.count(0)} | {mean:.1f} | {max(steps)}"
            lines.append(f"| {name} | {len(steps)} | {cells} |")
    return "\n".join(lines)


def _words(record: Record) -> str:
    keys = ("kind", "number", "phase", "what", "outcome", "note")
    said = ", ".join(str(record[key]) for key in keys if record.get(key))
    return said.replace("\n", " ")[:300]
