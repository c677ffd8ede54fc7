"""The benchmark of checkpoints: on times that are known, and once for real."""

import json
from pathlib import Path

import jax
import pytest

from benchmarks import checkpoint
from tests.training.tiny import one_device


def test_a_state_has_its_size() -> None:
    state = checkpoint.make_state(8)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == 8 * 2**20
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state["params"])) == 2 * 2**20


def test_a_row_of_known_times() -> None:
    taken = {"wait": [0.1, 0.3, 0.2], "wait_cpu": [0.1] * 3, "save": [2.0, 1.0, 4.0]}
    taken |= {"save_cpu": [3.0] * 3, "restore": [1.0, 0.5, 0.25], "restore_cpu": [1.0]}
    row = checkpoint.table({1000: taken}).splitlines()[-1]
    times = "0.20 (0.10 .. 0.30) | 2.00 (1.00 .. 4.00) | 0.50 (0.25 .. 1.00)"
    assert row == f"| 1,000 | {times} | 3.00 | 500 | 2,000 |"


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, output = tmp_path / "page.md", tmp_path / "new" / "checkpoint.json"
    document.write_text(f"before\n{checkpoint.BEGIN}\nold\n{checkpoint.END}\nafter\n")
    options = ["--sizes=4,8", "--rounds=1", f"--folder={tmp_path}"]
    options += [f"--output={output}", f"--document={document}"]
    with one_device():
        assert checkpoint.main(options) == 0
    record = json.loads(output.read_text())
    for taken in record["seconds"].values():
        assert 0 < taken["wait"][0] < taken["save"][0]
        assert taken["restore"][0] > 0
    table = document.read_text()
    assert table.startswith("before\n") and table.endswith("after\n")
    assert "| 4 |" in table and "| 8 |" in table and "old" not in table
    assert "| 8 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--sizes=6", "--sizes is '6', expected multiples of 4"),
        ("--rounds=0", "--rounds is 0, expected at least 1"),
        ("--document=missing.md", "missing.md"),
    ],
)
def test_bad_options(
    option: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checkpoint.main([option]) == 1
    assert said in capsys.readouterr().err
