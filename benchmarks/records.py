"""What a benchmark measured, as a file of JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multistep_cm.files import make_folder, write_text


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write it, and make the folder that it goes to; UserError when that is refused."""
    make_folder(path.parent)
    write_text(path, json.dumps(record, indent=2) + "\n")
