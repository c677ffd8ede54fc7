"""The plans of docs/scaling.md: which, by which command, and how they read."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling import run, text
from benchmarks.scaling.layout import CHIPS, PAPER, WEAK, Row, all_rows
from multistep_cm.planning.topology import parse_topology


def plan(row: Row, slowest: float = 0.5) -> dict[str, Any]:
    """A plan of a million parameters in which all numbers are easy."""
    chips = parse_topology(row.topology).num_devices
    return {
        "num_chips": chips,
        "num_devices": chips,
        "parameters": 1_000_000,
        "used_per_device_bytes": 3 * 2**30,
        "hbm_per_device_bytes": 16 * 2**30,
        "collectives": [
            {"kind": "all-gather", "link_bytes": 7_000_000},
            {"kind": "all-gather", "link_bytes": 1_000_000},
            {"kind": "all-reduce", "link_bytes": 4_000_000},
            {"kind": "collective-permute", "link_bytes": 2_000_000},
        ],
        "steps_per_second": [1 / slowest, 4.0],
        "mfu": [0.2, 0.4],
        "compile_seconds": 99.6,
        "roofline": {
            "cycles_seconds": 0.4,
            "interconnect_seconds": 0.0125,
            "slowest_seconds": slowest,
        },
    }


def cells(table: str, number: int) -> list[str]:
    """Of one line, the headings being line 0."""
    line = [x for x in table.splitlines() if not x.startswith("|-")][number]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_row_is_a_command_for_a_slice_that_exists() -> None:
    rows = all_rows()
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.batch_size % parse_topology(row.topology).num_devices == 0
        words = run.command(row)
        assert f"--topology={row.topology}" in words
        changed = f"--config.training.batch_size={row.batch_size}" in words
        assert changed == (row.batch_size != 2048)
    shown = run.command(Row("S", "cd", "v5e:2x4", accumulation=8))
    assert shown[-1] == "--config.training.accumulation=8"


def test_the_required_plans_are_there() -> None:
    assert {(row.size, row.stage) for row in PAPER} == {
        (size, stage) for size in "SL" for stage in ("cd", "ct")
    }
    assert {row.chip for row in CHIPS} == {"v4", "v5e", "v5p", "v6e"}
    images = {row.batch_size / parse_topology(row.topology).num_devices for row in WEAK}
    assert images == {32}
    sizes = [parse_topology(row.topology).num_devices for row in WEAK]
    assert sizes == [8, 16, 32, 64, 128, 256]


def test_bytes_stand_beside_the_least_that_is_possible() -> None:
    table = text.chips_table({row: plan(row) for row in CHIPS})
    first, second = cells(table, 1), cells(table, 2)
    # Eight microbatches gather and sum eight times, each device 7 parts of 8:
    # 2 bytes x 4 uses x 8 x 7/8, 2 bytes x 8 x 7/8.
    assert first[:3] == ["S CD", "v5e:2x4", "8"]
    assert first[4:8] == ["8 MB", "56", "6 MB", "14"]
    assert second[3:8] == ["3.00 of 16.00 GiB", "8 MB", "8", "6 MB", "2"]
    assert second[8:] == ["2.00 to 4.00", "20 to 40 %", "100 s"]
    assert cells(table, 3)[0] == "S CD, no flags"


def test_more_chips_are_compared_with_the_fewest() -> None:
    plans = {row: plan(row, 0.5 if row is WEAK[0] else 0.625) for row in WEAK}
    table = text.weak_table(plans)
    assert cells(table, 1)[-1] == "100 %"
    assert cells(table, 6)[-1] == "80 %"
    assert cells(table, 6)[1:5] == ["256", "8,192", "400 ms", "12.5 ms"]


def test_what_is_there_is_written_between_the_marks(tmp_path: Path) -> None:
    document = tmp_path / "scaling.md"
    names = ("chips", "weak", "plans")
    marks = [
        f"<!-- {n}: python -m benchmarks.scaling -->\n<!-- /{n} -->" for n in names
    ]
    document.write_text("\nbetween\n".join(marks))
    row = PAPER[0]
    (tmp_path / f"{row.name}.json").write_text(json.dumps(plan(row)))
    (tmp_path / f"{row.name}.txt").write_text("$ multistep-cm plan\nfits\n")
    arguments = [f"--workdir={tmp_path}", f"--document={document}", "--only_write"]
    assert run.main(arguments) == 0
    written = document.read_text()
    assert "```\n$ multistep-cm plan\nfits\n```" in written
    assert written.count("v5e:8x8") == 3  # in two tables, and as a heading
    assert written.count("between") == 2


def test_a_plan_that_fails_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "all_rows", lambda: [Row("S", "cd", "v5e:8x7")])
    assert run.main([f"--workdir={tmp_path}"]) == 2
    assert "v5e:8x7" in capsys.readouterr().err


@pytest.mark.parametrize("chip", ["v4", "v5e", "v5p", "v6e"])
def test_flags_are_those_of_the_launch_scripts(chip: str) -> None:
    flags = run.libtpu_flags(chip).split()
    assert "--xla_tpu_prefer_async_allgather_to_allreduce=true" in flags
    assert all(flag.startswith("--xla") for flag in flags)
