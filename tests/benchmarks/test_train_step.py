"""The benchmark of train steps: its workers, its ratios, its sentences."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest

from benchmarks.train_step.ours import make_config
from benchmarks.train_step.run import ask, main, parse_peers, summary, worker
from benchmarks.train_step.text import table
from benchmarks.train_step.work import Side, Work
from benchmarks.train_step.worker import serve
from multistep_cm.errors import UserError

FACTS = {
    "parameters": 2_000_000,
    "flops": 4e9,
    "compiler_flops": 5e9,
    "peak_flops": 8e9,
    "device": "cpu",
    "versions": {"jax": "1"},
}


def steps(*seconds: float) -> list[dict[str, float]]:
    return [
        {"cpu_seconds": s, "wall_seconds": 2 * s, "memory_bytes": 2**20}
        for s in seconds
    ]


def test_the_median_is_held_against_flops_and_peak() -> None:
    got = summary(Work(batch=16), {**FACTS, "steps": steps(9.0, 1.0, 2.0)})
    assert got["cpu_seconds"] == 2.0 and got["cpu_seconds_range"] == [1.0, 9.0]
    assert got["images_per_cpu_second"] == 8.0
    assert got["achieved_flops"] == 2e9 and got["share_of_peak"] == 0.25


def test_the_ratio_is_above_one_where_ours_is_faster() -> None:
    sides = {
        name: {**FACTS, "steps": steps(seconds)}
        for name, seconds in (("ours", 2.0), ("other", 3.0))
    }
    for result in sides.values():
        result.update(summary(Work(), result))
    row = next(x for x in table(Work(), sides).splitlines() if x.startswith("| other"))
    assert "| 1.50 |" in row


def test_a_record_becomes_the_table_of_a_document(tmp_path: Path) -> None:
    side = {**FACTS, "steps": steps(2.0)}
    record = {
        "work": dataclasses.asdict(Work(method="ct")),
        "sides": {"ours": {**side, **summary(Work(), side)}},
    }
    results, document = tmp_path / "results.json", tmp_path / "document.md"
    results.write_text(json.dumps(record))
    marks = [f"<!-- {word} train_step ct unet -->" for word in ("begin", "end")]
    document.write_text("before\n" + "\nold\n".join(marks) + "\nafter\n")
    words = [f"--results={results}", f"--document={document}"]
    assert main(words) == 0
    text = document.read_text()
    assert "old" not in text and "| ours | 2.00 |" in text
    assert text.startswith("before\n") and text.endswith("after\n")
    document.write_text("no marks")
    assert main(words) == 1
    assert main(["--results=/nowhere"]) == 1


def test_heun_is_the_hop_of_a_distillation() -> None:
    assert make_config(Work(method="heun")).method == "cd"
    assert make_config(Work(method="heun")).consistency.hop == "heun"
    assert make_config(Work(method="ct")).method == "ct"


@pytest.mark.parametrize("word", ["nobody=.", "ect=.", "tract=", "tract=/nowhere"])
def test_a_wrong_peer_is_one_sentence(word: str) -> None:
    with pytest.raises(UserError, match=rf"^--peer={word}: ") as said:
        parse_peers([word], ("fastgen", "tract"))
    assert "\n" not in str(said.value)


def test_the_twin_needs_no_clone() -> None:
    assert parse_peers(["twin"], ("twin",)) == {"twin": ""}
    with pytest.raises(UserError, match="no peer has this method and model"):
        parse_peers(["twin"], ())


def test_a_side_that_does_not_start_is_one_sentence() -> None:
    words = [sys.executable, "-c", "pass"]
    with worker(words, 1) as process, pytest.raises(UserError, match="side tract has"):
        ask("tract", process, "step\n")


def test_a_worker_answers_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("step\nstep\n"))
    taken: list[int] = []
    answers = io.StringIO()
    serve(Side(lambda: taken.append(1), 5, {"flops": 7}), answers)
    facts, *rest = map(json.loads, answers.getvalue().splitlines())
    assert facts["parameters"] == 5 and facts["flops"] == 7
    assert len(taken) == len(rest) == 2
    assert {"cpu_seconds", "wall_seconds", "memory_bytes"} == set(rest[0])
