"""The commands that write results into the documents."""

import json
from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.documents import replace_between, split_at_marks
from multistep_cm.errors import UserError


def test_the_readme_has_its_marks(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    row = {"method": "cd", "steps": 4, "frechet_distance": 0.0123}
    results.write_text(json.dumps({"floor": 0.01, "rows": [row]}))
    text = readme.replace_table((readme.ROOT / "README.md").read_text(), results)
    assert "| cd " in text
    assert "0.0123" in text
    assert readme.replace_table(text, results) == text


def test_what_stands_between_marks_is_replaced() -> None:
    text = "before\n<a>\nold\n<b>\nafter\n"
    assert split_at_marks(text, "<a>", "<b>") == ("before\n", "\nold\n", "\nafter\n")
    new = replace_between(text, "<a>", "<b>", "new")
    assert new == "before\n<a>\nnew\n<b>\nafter\n"
    assert replace_between(new, "<a>", "<b>", "new") == new


def test_a_document_without_marks_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks the marks"):
        readme.replace_table("nothing here", tmp_path / "results.json")
    for text in ("nothing", "<a> only", "<b> before <a>"):
        with pytest.raises(UserError, match=r"results\.md lacks the marks"):
            replace_between(text, "<a>", "<b>", "new", "results.md")
