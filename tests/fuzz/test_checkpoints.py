"""Checkpoints of which one file, anywhere, is not what it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from multistep_cm.checkpoints import Checkpoints
from tests.fuzz.invariant import contents, fewer, refusal, run
from tests.fuzz.mutations import changed, mutated
from tests.test_checkpoints import like, save, trees
from tests.training.tiny import assert_trees_equal

# TensorStore leaves a coroutine behind when it meets damage.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collected"),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with the steps 2 and 4."""
    workdir = tmp_path_factory.mktemp("checkpoints")
    save(workdir, 2, 4)
    return workdir


def damage(path: Path, data: st.DataObject) -> None:
    """Change one file: its bytes, its JSON, or what it is."""
    kinds = ["bytes", "bytes", "gone", "folder", "empty", "other"]
    whole = path.read_bytes()
    if whole[:1] == b"{":
        kinds += ["json", "json"]
    kind = data.draw(st.sampled_from(kinds))
    if kind == "json":
        path.write_text(json.dumps(data.draw(changed(json.loads(whole)))))
    elif kind == "bytes":
        path.write_bytes(data.draw(mutated(whole)))
    elif kind == "other":
        files = sorted(p for p in path.parents[1].rglob("*") if p.is_file())
        path.write_bytes(data.draw(st.sampled_from(files)).read_bytes())
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "empty":
            path.touch()


def assert_good_or_refused(workdir: Path) -> None:
    """What is restored is, to the bit, what was saved under that number."""
    found: list[Any] = []

    def restore() -> None:
        with Checkpoints(workdir) as checkpoints:
            found.append(checkpoints.restore(like(trees(0))))

    said = refusal(restore)
    assert found or str(workdir) in said
    if found:
        step, restored, position = found[0]
        assert step in (2, 4)
        assert position == {"position": step}
        assert_trees_equal(restored, trees(step))


@given(data=st.data())
@fewer(2)
def test_one_damaged_file(
    data: st.DataObject,
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = tmp_path / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(good, workdir)
    files = sorted(p for p in (workdir / "checkpoints/4").rglob("*") if p.is_file())
    damage(data.draw(st.sampled_from(files)), data)
    assert_good_or_refused(workdir)
    before = contents(workdir)
    run(capsys, "verify", f"--workdir={workdir}")
    assert contents(workdir) == before


@given(
    names=st.lists(
        st.sampled_from(["5", "٣", "-1", "1e3", "9" * 30, "4.tmp", "04", "x", "5.0"])
        | st.text(st.characters(exclude_characters="/\0", codec="utf-8"), max_size=5),
        max_size=3,
        unique=True,
    ),
    kind=st.sampled_from(["folder", "file", "copy", "link"]),
)
@fewer(2)
def test_what_else_may_lie_there(
    names: list[str],
    kind: str,
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = tmp_path / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(good, workdir)
    for name in names:
        path = workdir / "checkpoints" / name
        if name in ("", ".", "..") or path.exists():
            continue
        if kind == "copy":  # under another number, which its digests deny
            shutil.copytree(good / "checkpoints" / "2", path)
        elif kind == "link":
            path.symlink_to("nowhere")
        elif kind == "file":
            path.touch()
        else:
            path.mkdir()
    assert_good_or_refused(workdir)
    run(capsys, "verify", f"--workdir={workdir}")


@given(data=st.data())
@fewer(4)
def test_weights_of_a_damaged_run(
    data: st.DataObject,
    teacher_workdir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the command line: a whole file of weights, or a sentence and no file."""
    workdir, output = tmp_path / "run", tmp_path / "weights.safetensors"
    shutil.rmtree(workdir, ignore_errors=True)
    output.unlink(missing_ok=True)
    for part in ("checkpoints", "config.json"):
        copy = shutil.copytree if part == "checkpoints" else shutil.copyfile
        workdir.mkdir(exist_ok=True)
        copy(teacher_workdir / part, workdir / part)
    files = [path for path in workdir.rglob("*") if path.is_file()]
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    of_last = [path for path in files if str(steps[-1]) in path.parts]
    for path in data.draw(
        st.lists(st.sampled_from(sorted(of_last)), max_size=2, unique=True)
    ):
        damage(path, data)
    if data.draw(st.booleans()):
        text = json.loads((workdir / "config.json").read_bytes())
        (workdir / "config.json").write_text(json.dumps(data.draw(changed(text))))
    said = run(capsys, "export", f"--workdir={workdir}", f"--output={output}")
    assert output.exists() != bool(said)
    if output.exists():
        assert load_file(output)
    assert not [*tmp_path.glob(".*.tmp")]


def test_the_whole_is_restored(good: Path) -> None:
    """The test of damage would pass if nothing ever were."""
    with Checkpoints(good) as checkpoints:
        found = checkpoints.restore(like(trees(0)))
    assert found is not None
    assert found[0] == 4
    np.testing.assert_array_equal(found[1]["ema"]["layer"]["bias"], np.zeros(64))
