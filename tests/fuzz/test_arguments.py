"""Words after the name of a command, in a folder that holds a run's config."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistep_cm import config as configs
from multistep_cm.commands.main import COMMANDS, main
from tests.fuzz.invariant import contents, fewer, run
from tests.training.tiny import tiny_config

OPTIONS = [
    *["--workdir", "--num_images", "--num_steps", "--sampler", "--ema_decay", "--seed"],
    *["--guidance_scale", "--x_variance", "--labels", "--classifier", "--features"],
    *["--inception_weights", "--reference", "--platforms", "--weights", "--topology"],
    *["--heartbeat_timeout", "--num_processes", "--process_id", "--again", "--num"],
    *["--config", "--config.seed", "--config.mesh.data", "--config.x", "-x", "--"],
]
VALUES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "-1", "0", "1", "2", "1e99", "nan", "inf", "9" * 999, "²"]),
    st.sampled_from(["cpu:8", "v5e:2x2", "ddim", "heun,ddim", "all", "0.99", "1,,2"]),
    st.sampled_from(["x" * 300, "a/" * 3000, "\0", "\udc80", "/dev/null", "%s%d", "~"]),
)
WORDS = st.one_of(
    st.tuples(st.sampled_from(OPTIONS), VALUES).map("=".join),
    st.sampled_from(OPTIONS),
    VALUES,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with no checkpoint: no command gets further than its checks."""
    path = tmp_path_factory.mktemp("fuzz") / "run"
    path.mkdir()
    (path / "config.json").write_text(configs.to_json(tiny_config()))
    return path


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "plan"])
@given(words=st.lists(WORDS, max_size=4))
@fewer(1)
def test_a_command_line(
    command: str,
    words: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(folder)
    monkeypatch.chdir(folder)  # of what a word may name
    # The last word counts; train's config is one that its check refuses.
    known = ["--workdir=."] if command != "train" else ["--workdir=.", "--config=none"]
    if command == "report":  # needs no checkpoint, so it does its work
        known.append("--config.method=none")
    words = [word for word in words if not word.startswith("-h")]
    assert run(capsys, command, *words, *known)
    assert contents(folder) == before


@given(words=st.lists(WORDS | st.sampled_from(["--verdict_only"]), max_size=3))
@fewer(1)
def test_a_plan(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "plan", *words, "--config=none")


@given(words=st.lists(WORDS, min_size=1, max_size=3))
@fewer(1)
def test_no_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if words[0] not in ("-h", "--help", "--version", *COMMANDS):
        assert run(capsys, *words)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_in_order(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: multistep-cm {command} ")
