"""What guidance does on the digits: ways, tables, and the measurement on a tiny run."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import guidance
from benchmarks.guidance import MIDDLE, STUDENT_WAYS, TEACHER_WAYS
from benchmarks.tables import run, students
from benchmarks.tables.layout import TABLES
from benchmarks.tables.students import CONFIG, Settings
from multistep_cm.config import load_config
from multistep_cm.diffusion.guidance import ALWAYS
from multistep_cm.evaluation import classifier
from multistep_cm.validation import validate
from tests.training.tiny import one_device


@pytest.mark.parametrize("way", STUDENT_WAYS)
def test_a_students_teacher_is_guided_as_its_row_says(way: guidance.Way) -> None:
    student = guidance._student(way, 4)
    (phase,) = student.phases
    keys = {"teacher.workdir": "some", **dict(phase.changes)}
    config = load_config(f"{CONFIG}:stage={phase.stage},steps={phase.steps}", keys)
    validate(config)
    consistency = config.consistency
    assert (consistency.guidance_scale, consistency.guidance_interval) == way
    assert consistency.student_steps == 4


def test_every_way_has_a_file_of_its_own() -> None:
    settings = Settings(Path("w"), "mlp", 8, 70)
    paths = {guidance._teacher_path(settings, 1, way, 4) for way in TEACHER_WAYS}
    assert len(paths) == len(TEACHER_WAYS)
    tables = {s.name for s, _ in run.unique_students(list(TABLES.values()), [1])}
    names = [guidance._student(way, 4).name for way in STUDENT_WAYS]
    assert len(set(names)) == len(STUDENT_WAYS)
    # That of no guidance is the same student as in the tables; no other is.
    assert set(names) & tables == {"cd"}


def numbers(value: float) -> dict[str, Any]:
    return {
        "frechet_distance": value / 1000,
        "pixel_frechet_distance": value / 500,
        "class_accuracy": 0.5,
        "variance_ratio": value,
    }


def test_the_tables_of_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(tmp_path / "w", "mlp", 800, 6000)
    for seed, more in ((1, 0.0), (2, 2.0)):
        paths = [guidance._teacher_path(settings, seed, w, 32) for w in TEACHER_WAYS]
        for way in STUDENT_WAYS:
            folder = guidance._student(way, 4).folder(settings.workdir, seed)
            paths.append(folder / "row.json")
        for index, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(numbers(index + more)))
    floors = {"floor": 0.009, "pixel_floor": 0.02}
    (settings.workdir / "floors.json").write_text(json.dumps(floors))
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{guidance.BEGIN}\nold\n{guidance.END}\nafter\n")
    words = [f"--workdir={settings.workdir}", f"--document={document}", "--only_write"]
    assert guidance.main([*words, "--seeds=1,2"]) == 0
    text = document.read_text()
    assert "old" not in text
    first = "| none | 1.0 ± 1.4 | 2.0 ± 2.8 | 50.00 ± 0.00 | 1.000 ± 1.414 |"
    assert text.splitlines()[6] == first
    assert "| 0.5, t in 0.2 to 0.6 | 6.0 ± 1.4 |" in text
    assert f"| none | {len(TEACHER_WAYS) + 1:.1f} ± 1.4 |" in text
    assert "9.0 in features, 20.0 in pixels" in text
    assert text.startswith(f"before\n{guidance.BEGIN}\n")
    assert text.endswith(f"\n{guidance.END}\nafter\n")
    (settings.workdir / "seed2" / "cd_k4" / "row.json").unlink()
    assert guidance.main([*words, "--seeds=1,2"]) == 2
    assert "row.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_teacher_is_sampled_in_each_way(
    teacher_workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = functools.partial(classifier.TrainingSettings, num_steps=2)
    monkeypatch.setattr(classifier, "TrainingSettings", quick)
    settings = Settings(tmp_path, "mlp", 8, 70)
    shutil.copytree(teacher_workdir, students.teacher_folder(settings, 1))
    ways = [(0.0, ALWAYS), (4.0, ALWAYS), (4.0, MIDDLE)]
    with one_device():
        guidance.measure_teacher(settings, 1, ways, num_steps=4)
    rows = [
        json.loads(guidance._teacher_path(settings, 1, way, 4).read_text())
        for way in ways
    ]
    assert [row["num_images"] for row in rows] == [70] * 3
    distances = {row["pixel_frechet_distance"] for row in rows}
    assert len(distances) == 3
