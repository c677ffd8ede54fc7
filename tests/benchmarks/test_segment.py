"""The picture of one segment: what it shows is what the loss does."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.mixtures import segment


def test_consistency_closes_the_gap_up_to_the_hop(x64: None) -> None:
    teacher, exact = segment.denoisers()
    before = segment.triangle(teacher, teacher)
    after = segment.triangle(teacher, exact)
    _, flow = segment.flow_path(segment.Z_T)
    assert after.jump[1][-1] == pytest.approx(flow[-1], abs=1e-9)
    # The hop's error alone: a hop of the exact flow would leave none.
    assert after.gap < before.gap / 4
    np.testing.assert_array_equal(before.hop[1], after.hop[1])
    # From z_s the untrained student comes nearer to the flow's end than from z_t.
    ends = [abs(path[1][-1] - flow[-1]) for path in (before.target, before.jump)]
    assert ends[0] < ends[1]
    # What docs/method.md says of it.
    assert [f"{drawn.gap:.2f}" for drawn in (before, after)] == ["0.06", "0.01"]


def test_the_command_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "segment.png"
    assert segment.main([f"--output={path}"]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"wrote {path}\n"


def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert segment.main(["--output=none/a.png"]) == 2
    error = capsys.readouterr().err
    assert "--output is none/a.png" in error
    assert error.count("\n") == 1
