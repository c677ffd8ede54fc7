"""The paper's tables in small: layout, text, and the command."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tables import run, students
from benchmarks.tables.layout import TABLES, Claim, Table, falling, worse
from benchmarks.tables.students import CONFIG, Settings, single
from benchmarks.tables.text import Rows, count_seeds, table_text
from multistep_cm.config import flatten, load_config
from multistep_cm.data.sources import all_examples, open_source
from multistep_cm.evaluation.measure import make_reference
from multistep_cm.training.loop import TrainingDivergedError, train
from multistep_cm.training.teacher import check_teacher
from multistep_cm.validation import validate
from multistep_cm.workdir import open_workdir
from tests.training.tiny import one_device, tiny_config

STUDENTS = [s for s, _ in run.unique_students(list(TABLES.values()), [1])]


@pytest.mark.parametrize("student", STUDENTS, ids=lambda s: f"{s.name}_k{s.steps}")
def test_every_phase_is_valid_and_teaches_the_next(
    student: students.Student, tmp_path: Path
) -> None:
    """Each phase's config is accepted with the phase before as its teacher."""
    assert student.phases[-1].steps == student.steps
    teacher = load_config(f"{CONFIG}:stage=teacher,network=mlp", {})
    for index, phase in enumerate([None, *student.phases]):
        folder = tmp_path / str(index)
        config = teacher
        if phase is not None:
            arguments = f"stage={phase.stage},network=mlp,steps={phase.steps}"
            keys = {"teacher.workdir": str(tmp_path / str(index - 1))}
            config = load_config(f"{CONFIG}:{arguments}", keys | dict(phase.changes))
            validate(config)
            check_teacher(config)
        open_workdir(folder, config)
        (folder / "checkpoints" / "1").mkdir(parents=True)


def test_a_folder_belongs_to_one_student() -> None:
    folders = {student.folder(Path("w"), 1) for student in STUDENTS}
    assert len(folders) == len(STUDENTS)


def test_claims_are_about_cells_that_exist() -> None:
    for table in TABLES.values():
        cells = {
            (label, steps) for label in table.rows for steps in table.columns(label)
        }
        cells |= {(f"teacher_{m}", k) for m in ("ddim", "addim") for k in table.teacher}
        for claim in table.claims:
            assert claim.pairs
            assert {cell for pair in claim.pairs for cell in pair} <= cells


TABLE = Table(
    title="A title",
    rows={
        "A": lambda k: single("a", "cd", k),
        "B": lambda k: single("b", "ct", k),
    },
    steps=(1, 2),
    only={"B": (2,)},
    claims=(falling("A", (1, 2), "A falls"), worse("A", "B", (2,), "A worse than B")),
)
FLOORS = {"floor": 0.01, "pixel_floor": 0.02}


def row(features: float, pixels: float) -> dict[str, Any]:
    return {"frechet_distance": features, "pixel_frechet_distance": pixels}


ROWS: Rows = {
    ("A", 1): {1: row(0.004, 0.4), 2: row(0.006, 0.6)},
    ("A", 2): {1: row(0.002, 0.5), 2: row(0.002, 0.5)},
    ("B", 2): {2: {"diverged": "at step 3"}},
}


def test_text_of_a_table() -> None:
    lines = table_text(TABLE, ROWS, FLOORS).splitlines()
    assert "| A | 5.0 ± 1.4 | 2.0 ± 0.0 |" in lines
    assert "| B |  |  (1) 1 diverged |" in lines
    assert "| A | 500.0 ± 141.4 | 500.0 ± 0.0 |" in lines
    assert "| A falls | 2 of 2 | 1 of 2 |" in lines
    assert "| A worse than B | 0 of 1 | 0 of 1 |" in lines
    assert "floor: 10.0" in lines
    assert "floor: 20.0" in lines


def test_a_claim_needs_all_its_cells() -> None:
    claim = Claim("", ((("A", 1), ("A", 2)), (("B", 2), ("A", 2))))
    assert count_seeds(claim, ROWS, "frechet_distance") == (1, 1)
    assert count_seeds(claim, {}, "frechet_distance") == (0, 0)


def write_rows(workdir: Path, table: Table, seeds: tuple[int, ...]) -> None:
    for seed in seeds:
        for number, student in enumerate(table.students()):
            folder = student.folder(workdir, seed)
            folder.mkdir(parents=True)
            found = row(0.001 * (number + seed), 0.1)
            (folder / "row.json").write_text(json.dumps(found))
    (workdir / "floors.json").write_text(json.dumps(FLOORS))


def marks(*names: str) -> str:
    begin = "<!-- {0}: python -m benchmarks.tables {0} -->\nPREVIOUS\n"
    begin += "<!-- end of {0} -->\n"
    return "".join(begin.format(name) for name in names)


def test_the_command_writes_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, workdir = tmp_path / "doc.md", tmp_path / "tables"
    document.write_text(marks("table2", "table4"))
    write_rows(workdir, TABLES["table4"], (1, 2))
    words = [f"--workdir={workdir}", f"--document={document}", "--only_write"]
    assert run.main(["table4", *words]) == 0
    text = document.read_text()
    assert "| aDDIM | 1.5 ± 0.7 | 2.5 ± 0.7 |" in text
    assert text.count("PREVIOUS") == 1  # table 2 was not asked for
    assert "| aDDIM | 1.5 ± 0.7 |" in capsys.readouterr().out
    assert run.main(["table4", *words, "--iterations=3"]) == 2
    assert "made with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["table7"], "there is no table 'table7'; expected: table1"),
        (["--seeds=one"], "--seeds is 'one', expected numbers like 1,2,3"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run.main([*words, f"--workdir={tmp_path / 'w'}"]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_the_document_of_the_repository_has_all_marks() -> None:
    text = run.DOCUMENT.read_text()
    for name in TABLES:
        assert f"<!-- {name}: python -m benchmarks.tables {name} -->" in text
        assert f"<!-- end of {name} -->" in text


def tiny_settings(workdir: Path, directory: Path) -> Settings:
    keys = flatten(tiny_config(directory))
    own = {"seed", "method", "teacher.workdir", "training.num_steps"}
    wanted = {
        key: str(value)
        for key, value in keys.items()
        if key.startswith(("model.", "data.", "diffusion.", "training."))
        and key not in own
    }
    return Settings(workdir, "unet", 8, 100, tuple(sorted(wanted.items())))


@pytest.mark.slow
def test_a_chain_is_trained_measured_and_kept(
    digits_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(tmp_path, digits_directory)
    data = tiny_config(digits_directory).data
    images, _ = all_examples(open_source(data, data.train_split))
    reference = make_reference(None, images)
    monkeypatch.setattr(students, "_reference", lambda _: (None, reference))
    student = students.halving("pd", 1, 2, "addim", "ddim")
    with one_device():
        teacher = students.teacher_folder(settings, 3)
        assert train(tiny_config(digits_directory, seed=3), teacher)
        found = students.measured_student(settings, student, 3)
    assert found["name"] == "pd" and found["steps"] == 1 and found["train_seed"] == 3
    assert found["pixel_frechet_distance"] > 0
    folder = student.folder(tmp_path, 3)
    kept = json.loads((folder / "phase1" / "config.json").read_text())
    assert kept["teacher"]["workdir"] == str(folder / "phase0")
    assert kept["training"]["num_steps"] == 4  # 8 iterations over two phases
    assert kept["consistency"]["hop"] == "ddim"
    first = json.loads((folder / "phase0" / "config.json").read_text())
    assert first["consistency"]["hop"] == "addim"
    assert kept["seed"] == 3
    assert not [*folder.glob("phase*/checkpoints")]
    # Again: the row comes from its file.
    monkeypatch.setattr(students, "train_student", None)
    assert students.measured_student(settings, student, 3) == found


def test_divergence_is_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*arguments: Any) -> Path:
        raise TrainingDivergedError("loss is not finite at step 3")

    monkeypatch.setattr(students, "train_student", diverge)
    settings = Settings(tmp_path, "mlp", 8, 100)
    student = single("a", "cd", 1)
    student.folder(tmp_path, 1).mkdir(parents=True)
    found = students.measured_student(settings, student, 1)
    assert found["diverged"] == "loss is not finite at step 3"
