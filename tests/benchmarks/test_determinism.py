"""The benchmark of determinism: differences that are known, and two tiny runs."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import determinism
from benchmarks.determinism import Case, Difference, End
from multistep_cm.errors import UserError


def end(value: float, loss: float = 2.0) -> End:
    params = {"a": np.array([3.0, 4.0], np.float32), "b": np.array([value], np.float32)}
    return End({"params": params, "ema": params}, {1: 1.0, 2: loss})


def test_differences() -> None:
    assert determinism.compare(end(0.0), end(0.0)) == Difference(True, 0.0, 0.0)
    found = determinism.compare(end(0.5, 2.2), end(0.0))
    # The root mean square of 3, 4 and 0 is 5 / sqrt(3).
    assert not found.same
    assert found.parameter == pytest.approx(0.5 * 3**0.5 / 5)
    assert found.loss == pytest.approx(0.1)


def test_a_zero_of_the_other_sign_is_not_the_same() -> None:
    found = determinism.compare(end(-0.0), end(0.0))
    assert not found.same and found.parameter == 0.0


def test_the_table() -> None:
    cases = (Case("one"), Case("again", "one"), Case("other", "one"))
    found = {"again": Difference(True, 0, 0), "other": Difference(False, 2e-4, 3e-6)}
    text = determinism.table(cases, found, 20)
    assert "| again | one | yes | 0 | 0 |" in text
    assert "| other | one | no | 2.0e-04 | 3.0e-06 |" in text


def test_every_case_is_held_against_one_before_it() -> None:
    names: list[str] = []
    for case in determinism.CASES:
        assert case.like in ("", *names) and case.name not in names
        names.append(case.name)


@pytest.mark.slow
def test_two_fresh_processes_have_the_same_bits(tmp_path: Path) -> None:
    tiny = ("model.name=mlp", "model.channels=(16,)", "model.blocks=(1,)")
    more = (*tiny, "model.attention_resolutions=()")
    cases = (Case(determinism.ONE, options=more), Case("again", determinism.ONE, more))
    found = determinism.run_all(cases, tmp_path, steps=2)
    assert found == {"again": Difference(True, 0.0, 0.0)}


def test_a_run_that_fails_is_told(tmp_path: Path) -> None:
    case = Case("broken", options=("training.batch_size=no",))
    with pytest.raises(UserError, match=r"(?s)the run 'broken' ended with \[2\].*'no'"):
        determinism.run(case, tmp_path / "0", tmp_path / "cache", 2)


def test_steps_are_even(capsys: pytest.CaptureFixture[str]) -> None:
    assert determinism.main(["--steps=3"]) == 2
    assert "--steps is 3, expected an even number" in capsys.readouterr().err
