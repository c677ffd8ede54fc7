"""The commands that write results into the documents."""

import json
from pathlib import Path

import pytest

from benchmarks import ablations, readme
from benchmarks.quickstart import CONFIG
from multistep_cm.config import load_config
from multistep_cm.errors import UserError
from multistep_cm.validation import validate

ROW = {
    "variation": "hop_ddim",
    "changes": "consistency.hop=ddim",
    "K": "4",
    "Fréchet distance": "0.1000",
    "in pixels": "0.2000",
    "class accuracy": "98.0%",
    "variance ratio": "0.900",
}


@pytest.mark.parametrize("name", ablations.VARIATIONS)
def test_every_variation_is_a_valid_config(name: str) -> None:
    overrides = {"teacher.workdir": "T", **ablations.VARIATIONS[name]}
    validate(load_config(f"{CONFIG}:stage=cd,steps=1", overrides))


def test_rows_are_kept_replaced_and_ordered(tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{ablations.BEGIN}\n{ablations.END}\nafter\n")
    ablations.keep_row(document, ROW)
    ablations.keep_row(document, {**ROW, "variation": "as_configured"})
    ablations.keep_row(document, {**ROW, "K": "1"})
    ablations.keep_row(document, {**ROW, "Fréchet distance": "0.0500"})
    text = document.read_text()
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    cells = [(line[0].strip("| "), line[2], line[3]) for line in lines[1:]]
    assert cells == [
        ("hop_ddim", "1", "0.1000"),
        ("as_configured", "4", "0.1000"),
        ("hop_ddim", "4", "0.0500"),
    ]
    assert text.startswith("before\n")
    assert text.endswith("after\n")


def test_the_documents_of_the_repository_have_their_marks(tmp_path: Path) -> None:
    assert ablations.BEGIN in ablations.DOCUMENT.read_text()
    results = tmp_path / "results.json"
    row = {"method": "cd", "steps": 4, "frechet_distance": 0.0123}
    results.write_text(json.dumps({"floor": 0.01, "rows": [row]}))
    text = readme.replace_table((readme.ROOT / "README.md").read_text(), results)
    assert "| cd " in text
    assert "0.0123" in text
    assert readme.replace_table(text, results) == text


def test_a_document_without_marks_is_said(tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text("nothing here")
    with pytest.raises(UserError, match="lacks the marks"):
        ablations.keep_row(document, ROW)
    with pytest.raises(UserError, match="lacks the marks"):
        readme.replace_table("nothing here", document)
