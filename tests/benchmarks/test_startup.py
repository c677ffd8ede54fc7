"""The start-up benchmark on times that are known."""

from pathlib import Path

import pytest

from benchmarks import startup
from multistep_cm.errors import UserError


def test_processes_take_turns() -> None:
    seen: list[tuple[str, ...]] = []

    def run(words: tuple[str, ...]) -> float:
        seen.append(words)
        return float(len(seen))

    seconds = startup.measure_processes(2, run)
    number = len(startup.PROCESSES)
    assert seen == 2 * list(startup.PROCESSES.values())
    first = next(iter(startup.PROCESSES))
    assert seconds[first] == [1.0, 1.0 + number]


def test_a_warm_start_has_the_cache_of_the_cold_one() -> None:
    options: list[dict[str, str]] = []

    def run(words: tuple[str, ...]) -> float:
        pairs = (word.split("=", 1) for word in words if word.startswith("--"))
        options.append({pair[0]: pair[1] for pair in pairs})
        assert Path(options[-1]["--workdir"]).parent.is_dir()
        return 8.0 if len(options) % 2 else 2.0

    seconds = startup.measure_starts("configs/digits.py", 2, run)
    assert seconds == {"cold start": [8.0, 8.0], "warm start": [2.0, 2.0]}
    cold, warm, cold_again, _ = options
    assert cold["--compilation_cache"] == warm["--compilation_cache"]
    assert cold["--workdir"] != warm["--workdir"]
    assert cold["--compilation_cache"] != cold_again["--compilation_cache"]
    assert "1/4.0 of a cold one's" in startup.table(seconds)


def test_seconds_of_a_process() -> None:
    assert startup.seconds_of(("-c", "import time; time.sleep(0.2)")) >= 0.2
    with pytest.raises(UserError, match=r"python -c raise .* failed: .*ValueError: no"):
        startup.seconds_of(("-c", "raise ValueError('no')"))
