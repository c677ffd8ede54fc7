"""What is read of workdirs, and what is said of files that are missing or wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from multistep_cm.config import load_config, to_json
from multistep_cm.errors import UserError
from multistep_cm.inspection.runs import (
    read_measured,
    read_workdirs,
    short_names,
    teachers_beside,
)
from tests.training.tiny import tiny_config


def make_workdir(path: Path, rows: list[dict[str, Any]] | None, **keys: Any) -> Path:
    """A folder as training leaves it, without checkpoints."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(to_json(tiny_config(**keys)))
    if rows is not None:
        text = json.dumps({"floor": 0.5, "rows": rows})
        (path / "evaluation.json").write_text(text)
    return path


ROW = {"method": "teacher_ddim", "steps": 2, "frechet_distance": 0.25}


def test_names_are_as_short_as_can_be(tmp_path: Path) -> None:
    assert short_names([tmp_path / "a" / "x", tmp_path / "b"]) == ["x", "b"]
    same = [tmp_path / "a" / "x", tmp_path / "b" / "x"]
    assert short_names(same) == ["a/x", "b/x"]


def test_a_run_and_its_numbers(tmp_path: Path) -> None:
    path = make_workdir(tmp_path / "run", [ROW], training__num_steps=1000)
    lines = [
        {"step": 500 * i, "loss": 0.5 / i, "images_per_second": i, "mfu": i / 9}
        for i in (1, 2)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (path / "parameters.txt").write_text("| a |\nTotal: 1,234 -- 4,936 bytes\n")
    (path / "checkpoints" / "500").mkdir(parents=True)
    (path / "checkpoints" / "1000").mkdir()
    (path / "checkpoints" / "1500.orbax-checkpoint-tmp-0").mkdir()
    (workdir,) = read_workdirs([path, tmp_path / "run" / ".." / "run"], {})
    assert workdir.run.name == "run"
    assert workdir.run.facts["newest checkpoint"] == "step 1,000"
    assert workdir.run.facts["trained"] == "1,000 of 1,000 steps, batch 8"
    assert workdir.run.facts["network"] == "unet, 1,234 parameters"
    assert workdir.run.facts["last loss"] == "0.25"
    speed = workdir.run.facts["speed of training"]
    assert speed == "2 images/s, MFU 16.7% (medians)"
    assert workdir.run.config["training.num_steps"] == 1000
    assert workdir.measured.rows == [ROW]
    assert workdir.measured.facts == {"floor": 0.5}
    assert not workdir.missing
    assert not workdir.is_student


def test_what_is_missing_is_said_with_its_command(tmp_path: Path) -> None:
    path = make_workdir(tmp_path / "a run", None)
    (workdir,) = read_workdirs([path], {})
    metrics, numbers = workdir.missing
    assert "no metrics.jsonl" in metrics.what
    assert "no evaluation.json" in numbers.what
    assert numbers.command == f"multistep-cm evaluate '--workdir={path}'"


def test_the_command_to_train_again_makes_the_same_config(tmp_path: Path) -> None:
    path = make_workdir(tmp_path / "run", None, seed=7, data__range=(0.0, 1.0))
    config = load_config(str(path / "config.json"), {"training.num_steps": "9"})
    expected = tiny_config(seed=7, data__range=(0.0, 1.0), training__num_steps=9)
    assert to_json(config) == to_json(expected)
    with pytest.raises(UserError, match="takes no arguments"):
        load_config(f"{path / 'config.json'}:stage=cd", {})


def test_a_teacher_elsewhere_lends_its_numbers(tmp_path: Path) -> None:
    teacher = make_workdir(tmp_path / "teacher", [ROW])
    keys = {"method": "cd", "teacher__workdir": str(teacher)}
    student = make_workdir(tmp_path / "cd", [], **keys)
    alone = read_workdirs([student], {})
    assert alone[0].is_student
    (lent,), missing = teachers_beside(alone)
    assert (lent.run, lent.rows) == ("teacher (teacher)", [ROW])
    assert not missing
    assert teachers_beside(read_workdirs([teacher, student], {})) == ([], [])


def test_a_teacher_without_numbers_is_said(tmp_path: Path) -> None:
    teacher = make_workdir(tmp_path / "teacher", None)
    keys = {"method": "cd", "teacher__workdir": str(teacher)}
    student = make_workdir(tmp_path / "cd", [], **keys)
    found, (missing,) = teachers_beside(read_workdirs([student], {}))
    assert not found
    assert f"the teacher {teacher} of {student} has no numbers" in missing.what
    assert missing.command == f"multistep-cm evaluate --workdir={teacher}"
    lost = make_workdir(tmp_path / "ct", [], teacher__workdir="nowhere", method="cd")
    _, (missing,) = teachers_beside(read_workdirs([lost, lost], {}))
    assert not missing.command


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[1]", 'no list "rows"'),
        ('{"rows": 3}', 'no list "rows"'),
        ('{"rows": [3]}', 'no list "rows"'),
    ],
)
def test_numbers_of_another_form(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        read_measured(tmp_path, "a")
    assert str(tmp_path / "evaluation.json") in str(caught.value)
