"""Two real processes find what one finds, each reading half of the images."""

import json
import sys
from typing import Any

import numpy as np
import pytest

from tests.sharding.processes import free_address, outputs, several

COUNT = "50"
COMMAND = [sys.executable, "-m", "tests.evaluation.measuring", COUNT]


def found(texts: list[str]) -> list[dict[str, Any]]:
    lines = [
        [line for line in text.splitlines() if line.startswith("{")] for text in texts
    ]
    assert all(len(each) == 1 for each in lines), texts
    return [json.loads(each[0]) for each in lines]


@pytest.mark.slow
def test_two_processes_find_what_one_finds() -> None:
    address = free_address()
    commands = [[*COMMAND, address, "2", str(process)] for process in range(2)]
    with several(commands, devices=2) as processes:
        first, second = found(outputs(processes))
    with several([COMMAND], devices=4) as processes:
        (alone,) = found(outputs(processes))
    # Five batches of twelve, the last filled up, and the first image for its shape.
    assert (first["read"], second["read"], alone["read"]) == (31, 31, 61)
    assert first["bits"] == second["bits"]
    for name in alone.keys() - {"read", "bits"}:
        np.testing.assert_allclose(
            first[name], alone[name], rtol=1e-6, atol=1e-9, err_msg=name
        )
