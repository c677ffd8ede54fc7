"""What was measured for minutes is not lost for want of a folder."""

import json
from pathlib import Path

import pytest

from benchmarks.records import write_record
from multistep_cm.errors import UserError


def test_a_record_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "new" / "record.json"
    write_record(path, {"seconds": [1, 2]})
    assert json.loads(path.read_text()) == {"seconds": [1, 2]}


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="runs cannot be made"):
        write_record(tmp_path / "runs" / "record.json", {})
