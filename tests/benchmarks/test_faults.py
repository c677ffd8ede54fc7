"""The fault campaign in short: damage in this process, and what would be noticed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.faults import corruption, damage, kills, layout, processes, run, tables
from benchmarks.faults.campaign import Campaign
from benchmarks.faults.corruption import Pristine, try_damage
from benchmarks.faults.layout import GOOD, Record
from benchmarks.faults.truth import different_bits, leftovers
from multistep_cm import checkpoints
from multistep_cm.training.loop import train
from tests.training.tiny import one_device, tiny_config

# TensorStore leaves a coroutine behind when it meets damage.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collected"),
]

TRIALS = 8


@pytest.fixture(scope="module")
def pristine(
    tmp_path_factory: pytest.TempPathFactory, digits_directory: Path
) -> Iterator[Pristine]:
    """A finished run of three checkpoints."""
    workdir = tmp_path_factory.mktemp("pristine")
    config = tiny_config(digits_directory, checkpoint__keep=3)
    with one_device():
        assert train(config, workdir)
        yield Pristine(workdir)


@pytest.mark.slow
def test_damage_is_noticed_or_harmless(pristine: Pristine, tmp_path: Path) -> None:
    trials = [try_damage(pristine, tmp_path, [3, 3, n]) for n in range(TRIALS)]
    assert [trial for trial in trials if trial["outcome"] not in GOOD] == []
    assert any(trial["outcome"] == "set aside" for trial in trials)


def test_the_campaign_would_see_wrong_values(
    pristine: Pristine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without digests, an item of another step is restored as if it were right."""
    shutil.copytree(pristine.workdir / "checkpoints", tmp_path / "checkpoints")
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder / "8" / "params")
    shutil.copytree(folder / "4" / "params", folder / "8" / "params")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._Step, "find_damage", lambda _: None)
        found = corruption._restore(pristine, tmp_path, [8])
    assert found["outcome"] == "wrong"
    assert found["note"].startswith("step 8: params/")
    found = corruption._restore(pristine, tmp_path, [8])
    assert found["outcome"] == "set aside"


def make_step(folder: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for name in ("params/d/a", "params/d/b", "ema/_METADATA", "digests/metadata"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.bytes(64))
    return folder


@pytest.mark.parametrize("way", damage.WAYS)
def test_each_way_damages_this_step_alone(way: str, tmp_path: Path) -> None:
    step, other = make_step(tmp_path / "1", 1), make_step(tmp_path / "2", 2)
    said = damage.WAYS[way][0](np.random.default_rng(0), step, other)
    assert not damage.same_files(step, make_step(tmp_path / "whole", 1))
    assert damage.same_files(other, make_step(tmp_path / "untouched", 2))
    assert said == "all: from 2" or any(
        said.startswith(name) for name in ("params", "ema", "digests")
    )


def test_a_flipped_bit_is_one_bit_and_any_file_is_met(tmp_path: Path) -> None:
    whole = make_step(tmp_path / "whole", 1)
    met = set()
    for seed in range(60):
        step = make_step(tmp_path / "step", 1)
        name = damage.flip_bit(np.random.default_rng(seed), step, whole).split(":")[0]
        met.add(name)
        a, b = ((root / name).read_bytes() for root in (step, whole))
        flipped = int.from_bytes(a, "big") ^ int.from_bytes(b, "big")
        assert flipped.bit_count() == 1
        (step / name).write_bytes(b)
        assert damage.same_files(step, whole)
    assert len(met) == 4


def judged(monkeypatch: pytest.MonkeyPatch, resumed: int | None, **known: Any) -> str:
    """The outcome of a kill after which the newest save was that of step 12."""
    record: Record = {"outcome": "to the bit", "in_order": False, "repeated": 3}
    record |= {"unfinished_save": False, "expected": 12} | known
    recorded = {6: {"params": {"": "six"}}, 12: {"params": {"": "twelve"}}}
    found = known.get("found", recorded)
    monkeypatch.setattr(kills, "recorded_digests", lambda _: found)
    truth: Any = type("Truth", (), {"digests": recorded})
    kills._judge([record], resumed, truth, Path())
    return str(record["outcome"])


def test_a_kill_is_judged_by_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged(monkeypatch, 12) == "to the bit"
    assert judged(monkeypatch, 6) == "error"  # a good save was not used
    assert judged(monkeypatch, 12, repeated=layout.EVERY) == "to the bit"
    assert judged(monkeypatch, 12, repeated=layout.EVERY + 1) == "error"
    late = {"repeated": 2 * layout.EVERY, "unfinished_save": True}
    assert judged(monkeypatch, 12, **late) == "to the bit"
    assert judged(monkeypatch, 12, repeated=1, in_order=True) == "error"
    other = {12: {"params": {"": "another"}}}
    assert judged(monkeypatch, 12, found=other) == "wrong"
    # The start was itself killed before it restored: a later one will tell.
    assert judged(monkeypatch, None, repeated=99) == "to the bit"


def test_bits_are_compared_and_not_values() -> None:
    a, b = ({"params": {"w": np.array([zero, 1.0])}} for zero in (0.0, -0.0))
    assert different_bits(a, a) == ""
    assert different_bits(a, b) == "params/w has other bits"
    assert "shape or dtype" in different_bits(
        a, {"params": {"w": a["params"]["w"].astype(np.float32)}}
    )
    assert different_bits(a, {"params": {}}) == "params/w is missing"


def test_what_a_run_does_not_own_is_left_behind(tmp_path: Path) -> None:
    for name in ("config.json", "metrics.jsonl", "checkpoints/6/data/metadata"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert leftovers(tmp_path) == []
    (tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp").mkdir()
    (tmp_path / ".config.json.1.tmp").touch()
    assert leftovers(tmp_path) == [
        ".config.json.1.tmp",
        "checkpoints/12.orbax-checkpoint-tmp",
    ]


def test_a_traceback_is_no_sentence() -> None:
    sentence = "multistep-cm train: no room"
    assert processes.ending(f"step 1\n{sentence}\n") == sentence
    assert processes.ending("step 1\n") == ""
    ours, theirs = (
        f'{processes.TRACEBACK}:\n  File "/any/{name}/thing.py", line 3\n{sentence}'
        for name in ("multistep_cm", "tensorstore")
    )
    assert processes.ending(ours) == ""
    assert processes.ending(theirs) == sentence


def kill(outcome: str, **known: Any) -> Record:
    facts = {"kind": "kill", "seed": 0, "commit": "abcdefg0", "outcome": outcome}
    place = {"phase": "step", "background": "", "in_order": False, "repeated": 2}
    return facts | place | {"unfinished_save": False, "number": 4} | known


def test_the_summary_counts_and_names_what_failed() -> None:
    rows = [kill("to the bit"), kill("to the bit", phase="compile", repeated=4)]
    text = tables.summary(rows)
    assert "| steps | 1 | 1 | 0 |" in text  # trials, to the bit, wrong
    assert "| between two saves | 2 | 0 | 3.0 | 4 |" in text
    assert "Not survived" not in text
    text = tables.summary([*rows, kill("wrong", note="other\nbits")])
    assert "| steps | 2 | 1 | 1 |" in text
    assert "- kill, 4, step, wrong, other bits" in text
    facts = {"commit": "a", "outcome": "within tolerance", "kind": "mesh"}
    text = tables.summary([facts | {"largest": x} for x in (0.0, 3e-8)])
    assert "within 3e-08 of those" in text
    facts |= {"outcome": "to the bit", "kind": "disk_full"}
    text = tables.summary([facts | {"tracebacks": n} for n in (0, 2, 7)])
    assert "In 2 trials threads of libraries" in text


def test_a_campaign_goes_on_and_makes_again_what_was_taken_out(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, seed=0)
    for number in (0, 1, 3):
        campaign._keep("clock", {"number": number, "outcome": "to the bit"})
    free = campaign._free("clock")
    assert [next(free) for _ in range(3)] == [2, 4, 5]
    assert len(campaign.done("clock")) == 3
    assert Campaign(tmp_path, seed=1).done("clock") == []
    # Nothing is missing, so nothing is made: 50 trials are two of the clock.
    campaign.run("clock", 50)
    assert len(campaign.records()) == 3


def test_the_summary_is_written_between_the_marks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"before\n{run.BEGIN}\nold\n{run.END}\nafter\n")
    output = tmp_path / "faults"
    output.mkdir()
    lines = [json.dumps(kill(outcome)) for outcome in ("to the bit", "wrong")]
    (output / "trials.jsonl").write_text("\n".join(lines) + "\n")
    argv = ["--only_write", f"--output={output}", f"--document={document}"]
    assert run.main(argv) == 1  # one was not survived
    text = document.read_text()
    assert text.startswith(f"before\n{run.BEGIN}\n| fault | trials |")
    assert text.endswith(f"{run.END}\nafter\n")
    assert "old" not in text
    capsys.readouterr()
    document.write_text("no marks")
    assert run.main(argv) == 2
    assert "lacks the marks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--kinds=kill,flood", "no kind 'flood'; there are: kill, term"),
        ("--trials=0", "--trials is 0, expected at least 1"),
        ("--document=nowhere.md", "nowhere.md cannot be read"),
    ],
)
def test_bad_arguments(
    argument: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([f"--output={tmp_path}", argument]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_chain_of_kills(tmp_path: Path) -> None:
    """Real processes: two undisturbed runs, then one that is killed three times."""
    campaign = Campaign(tmp_path, seed=5)
    truth = campaign.truths[layout.TEACHER.name]
    aims = ["compile", "step", "remove"]
    trials = kills.run_chain(
        tmp_path / "chain", truth, campaign.data, [5], "kill", 3, aims
    )
    assert trials
    assert [trial for trial in trials if trial["outcome"] != "to the bit"] == []
    assert jax.device_count() == 8  # the runs were not made here
