"""The scripts for other machines: dry runs, stand-ins for their tools, no secrets."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
BASH = shutil.which("bash") or "bash"
CHIPS = sorted(path.stem for path in (LAUNCH / "xla_flags").glob("*.txt"))
# What a shell would tear apart or run, if it were not quoted.
COMMAND = ["train", "--config=a b.py:x=1", "--workdir=/w/$(touch X);'\"&"]
COMMAND += ["--config.data.name=$(MULTISTEP_CHIP)$HOME`touch X`\\", "*", "", "$$", "\t"]
POD = ["--name=n", "--zone=z", "--type=v5litepod-16"]


def run(
    script: str,
    *words: str,
    tools: Path | None = None,
    root: Path = ROOT,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """A script, with the programs of `tools` found before any others."""
    path = os.environ.get("PATH", "")
    return subprocess.run(
        [BASH, str(root / "launch" / script), *words],
        env={"PATH": f"{tools}:{path}" if tools else path, **variables},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )


def stand_in(folder: Path, name: str, text: str = "") -> Path:
    """A program that notes its arguments in the file `calls`, then runs `text`."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    note = f"printf '%s\\037' {name} \"$@\"; printf '\\036'"
    where = shlex.quote(str(folder / "calls"))
    path.write_text(f"#!{BASH}\n{{ {note}; }} >>{where}\n{text}\n")
    path.chmod(0o755)
    return folder


def calls(folder: Path) -> list[list[str]]:
    records = (folder / "calls").read_text().split("\036")[:-1]
    return [record.split("\037")[:-1] for record in records]


def commands(output: str) -> list[list[str]]:
    """The commands of a dry run, as a shell reads them."""
    shown = [line for line in output.splitlines() if not line.startswith("#")]
    words = f'for line in {shlex.join(shown)}; do eval "set -- $line"; '
    words += "printf '%s\\0' \"$@\"; printf '\\n\\0'; done"
    done = subprocess.run([BASH, "-c", words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = [[]]
    for word in done.stdout.split("\0"):
        found[-1].append(word) if word != "\n" else found.append([])
    return [command for command in found if command and command != [""]]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("local_gpu.sh", ["--dry-run"]),
        ("slurm.sbatch", ["--dry-run"]),
        ("in_container.sh", ["--dry-run"]),
    ],
)
def test_a_dry_run_prints_the_words_as_they_were(script: str, words: list[str]) -> None:
    done = run(script, *words, *COMMAND)
    assert (done.returncode, done.stderr) == (0, "")
    assert commands(done.stdout)[0][-len(COMMAND) :] == COMMAND
    assert not (ROOT / "X").exists()


@pytest.mark.parametrize("chip", CHIPS)
def test_flags_are_explained_and_have_sources(chip: str) -> None:
    lines = (LAUNCH / "xla_flags" / f"{chip}.txt").read_text().splitlines()
    flags = [line for line in lines if line and not line.startswith("#")]
    assert flags
    assert all(re.fullmatch(r"(libtpu )?--xla_\w+=\w+", flag) for flag in flags)
    for block in "\n".join(lines).split("\n\n")[1:]:
        assert re.search("# Source: (https://|docs/)", block), block
    done = run("in_container.sh", "--dry-run", "train", MULTISTEP_CHIP=chip)
    (words,) = commands(done.stdout)
    found = {w.partition("=")[0]: w.partition("=")[2].split() for w in words[1:3]}
    tpu = [flag.removeprefix("libtpu ") for flag in flags if flag.startswith("libtpu")]
    assert found["LIBTPU_INIT_ARGS"] == tpu
    assert found["XLA_FLAGS"] == [flag for flag in flags if flag[0] == "-"]


def test_flags_of_the_user_come_last() -> None:
    done = run("slurm.sbatch", "--dry-run", "train", XLA_FLAGS="--xla_a=1 --xla_b=2")
    flags = commands(done.stdout)[0][1].partition("=")[2].split()
    assert flags[-2:] == ["--xla_a=1", "--xla_b=2"]
    assert len(flags) > 2


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("local_gpu.sh", [], "needs a command"),
        ("local_gpu.sh", ["--chip=h101", "train"], "h101: name one of"),
        ("slurm.sbatch", [], "needs a command"),
        ("slurm.sbatch", ["train"], "no SLURM job"),
        ("tpu_pod.sh", ["--zone=z"], "needs --name"),
        ("tpu_pod.sh", ["--nome=n"], "does not know --nome=n"),
        ("tpu_pod.sh", POD, "needs a command after --"),
        ("tpu_pod.sh", [*POD, "--restarts=x", "--", "train"], "--restarts is x"),
        (
            "tpu_pod.sh",
            [*POD[:2], "--type=v9-8", "--", "train"],
            "--type=v9-8 is not known",
        ),
        ("gke.sh", ["--bucket=bb", "--", "train"], "needs --image"),
        ("gke.sh", ["--image=i", "--", "train"], "--bucket is ''"),
        ("gke.sh", ["--image=i", "--bucket=gs://b", "--", "train"], "without gs://"),
        ("gke.sh", ["--image=i", "--bucket=bb"], "needs a command after --"),
        ("gke.sh", ["--image=i", "--bucket=bb", "--name=A", "--", "t"], "--name is A"),
    ],
)
def test_bad_input_is_one_sentence(
    script: str, words: list[str], expected: str
) -> None:
    done = run(script, *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert expected in done.stderr


def test_a_pod_is_asked_for_installed_started_and_followed() -> None:
    done = run("tpu_pod.sh", *POD, "--spot", "--project=p", "--dry-run", "--", *COMMAND)
    assert (done.returncode, done.stderr) == (0, "")
    create, _, archive, copy, start, follow = commands(done.stdout)
    assert create[3:6] == ["queued-resources", "create", "n-request"]
    assert {"--zone=z", "--project=p", "--spot", "--node-id=n"} <= {*create}
    assert "--accelerator-type=v5litepod-16" in create
    assert archive[:2] == ["git", "archive"]
    assert copy[4] == "scp"
    assert "--worker=all" in copy
    assert "--worker=all" in start
    assert "--worker=0" in follow
    # The script of a host parses, and its run is the command that was given.
    script = start[-1].removeprefix("--command=")
    subprocess.run([BASH, "-n", "-c", script], check=True)
    detached = re.search(r"bash -c (.*) >run.log", script)
    assert detached
    inner = bash_words(detached[1])[0].removesuffix("; echo $? >run.status")
    assert bash_words(inner)[-len(COMMAND) :] == COMMAND


def bash_words(text: str) -> list[str]:
    code = f"set -- {text}; printf '%s\\0' \"$@\""
    done = subprocess.run([BASH, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]


# A cloud in which the slice exists once it was created, and whose hosts answer the
# question for the end of the run with the codes in the file `ends`, one after another.
GCLOUD = """
case "$*" in
  *"queued-resources describe"*) [[ -e {0}/slice ]] && cat {0}/slice || exit 1 ;;
  *"queued-resources create"*) echo ACTIVE >{0}/slice ;;
  *"queued-resources delete"*) rm {0}/slice ;;
  *"--worker=0"*)
    end=$(head -n 1 {0}/ends)
    sed -i 1d {0}/ends
    [[ $end != 255 ]] || echo SUSPENDED >{0}/slice
    exit "$end"
    ;;
esac
"""


def pod(tmp_path: Path, ends: str, *options: str) -> tuple[int, str, list[str]]:
    """Run the script against that cloud; the verbs that gcloud was asked."""
    tools = stand_in(tmp_path / "bin", "gcloud", GCLOUD.format(tmp_path))
    stand_in(tools, "sleep")
    stand_in(tools, "git")
    (tmp_path / "ends").write_text(ends.replace(" ", "\n") + "\n")
    done = run("tpu_pod.sh", *POD, *options, "--", "train", tools=tools)
    asked = [call[4] for call in calls(tools) if call[0] == "gcloud"]
    return done.returncode, done.stderr, [verb for verb in asked if verb != "describe"]


ONCE = ["scp", "ssh", "ssh"]


def test_a_preempted_pod_is_made_again_and_goes_on(tmp_path: Path) -> None:
    status, errors, asked = pod(tmp_path, "255 0", "--delete")
    assert (status, errors) == (0, "")
    assert asked == ["create", *ONCE, "delete", "create", *ONCE, "delete"]


def test_a_pod_that_exists_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "slice").write_text("ACTIVE\n")
    assert pod(tmp_path, "134 0") == (0, "", [*ONCE, *ONCE])


def test_a_pod_is_not_restarted_for_ever(tmp_path: Path) -> None:
    status, errors, asked = pod(tmp_path, "1 1 1 1", "--restarts=1")
    assert (status, errors) == (1, "Given up after 1 restarts.\n")
    assert asked == ["create", *ONCE, *ONCE]


def test_bad_input_on_the_pod_is_not_tried_again(tmp_path: Path) -> None:
    assert pod(tmp_path, "2 0") == (2, "", ["create", *ONCE])


def slurm_checkout(tmp_path: Path) -> Path:
    """A copy of the scripts with an interpreter, which is enough for a job script."""
    root = tmp_path / "a check out"
    shutil.copytree(LAUNCH, root / "launch")
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").symlink_to(sys.executable)
    return root


# Hands signals to its task, as srun does, and ends as the task does.
SRUN = """
trap 'kill -TERM "$task"' TERM
python3 -u {} &
task=$!
wait "$task" || wait "$task"
exit
"""
SAVES = """
import signal, sys, time
def end(*_): print("saved", flush=True); sys.exit({})
signal.signal(signal.SIGTERM, end)
print("running", flush=True)
time.sleep(30)
"""


def job(tmp_path: Path, task: str, stop: bool) -> tuple[int, str, list[list[str]]]:
    root = slurm_checkout(tmp_path)
    (tmp_path / "task.py").write_text(task)
    tools = stand_in(tmp_path / "bin", "srun", SRUN.format(tmp_path / "task.py"))
    stand_in(tools, "scontrol")
    process = subprocess.Popen(
        [BASH, "launch/slurm.sbatch", *COMMAND],
        cwd=root,
        env={
            "PATH": f"{tools}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "71",
            "SLURM_SUBMIT_DIR": str(root),
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    if stop:
        said = process.stdout.readline()
        process.terminate()
    said += process.communicate(timeout=60)[0]
    return process.returncode, said, calls(tools)


def test_a_job_runs_the_command_on_all_nodes(tmp_path: Path) -> None:
    status, _, asked = job(tmp_path, "pass", stop=False)
    assert status == 0
    assert len(asked) == 1
    assert asked[0][:2] == ["srun", "--kill-on-bad-exit=1"]
    assert asked[0][3:] == ["-m", "multistep_cm", *COMMAND]


def test_a_job_fails_as_its_processes_do(tmp_path: Path) -> None:
    status, _, asked = job(tmp_path, "raise SystemExit(134)", stop=False)
    assert (status, len(asked)) == (134, 1)


def test_a_job_that_is_stopped_saves_and_queues_again(tmp_path: Path) -> None:
    status, said, asked = job(tmp_path, SAVES.format(0), stop=True)
    assert status == 0
    assert said.splitlines()[:2] == ["running", "saved"]
    assert asked[-1] == ["scontrol", "requeue", "71"]


def test_a_job_that_could_not_save_is_not_queued_again(tmp_path: Path) -> None:
    status, _, asked = job(tmp_path, SAVES.format(3), stop=True)
    assert status == 3
    assert [call[0] for call in asked] == ["srun"]


def expanded(word: str, variables: Iterable[str]) -> str:
    """What Kubernetes makes of an argument: $(NAME) a value, $$ a dollar."""

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return "a value" if found[1] in variables else found[0]

    return re.sub(r"\$\$|\$\(([^)]*)\)", value, word)


def test_the_manifest_is_filled_in(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    tools = stand_in(tmp_path / "bin", "kubectl", f"cat >{tmp_path}/manifest")
    words = ["--image=i:1", "--bucket=bb", "--name=run-1", "--", *COMMAND]
    done = run("gke.sh", *words, tools=tools)
    assert (done.returncode, done.stderr) == (0, "")
    assert calls(tools) == [["kubectl", "apply", "--filename=-"]]
    manifest = (tmp_path / "manifest").read_text()
    dry = run("gke.sh", "--dry-run", *words)
    assert manifest in dry.stdout
    assert "__" not in manifest
    found = yaml.safe_load(manifest)
    assert found["kind"] == "JobSet"
    assert found["metadata"]["name"] == "run-1"
    (jobs,) = found["spec"]["replicatedJobs"]
    job_spec = jobs["template"]["spec"]
    assert job_spec["parallelism"] == job_spec["completions"] == 4
    pod_spec = job_spec["template"]["spec"]
    (container,) = pod_spec["containers"]
    variables = {variable["name"] for variable in container["env"]}
    assert [expanded(word, variables) for word in container["args"]] == COMMAND
    assert container["image"] == "i:1"
    assert pod_spec["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "bb"
    chips = [variable["value"] for variable in container["env"]]
    assert set(chips) <= set(CHIPS)


def test_the_image_holds_what_its_entry_needs(tmp_path: Path) -> None:
    """The steps of the Dockerfile, without Docker: what it copies, runs from there."""
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split() for line in text.splitlines() if line and line[0] != "#"]
    image = tmp_path / "image"
    image.mkdir()
    installed = False
    for name, *words in steps:
        if name == "COPY":
            *sources, target = words
            for source in sources:
                copy(ROOT / source, image / target)
        elif name == "RUN":
            installed = True
            assert words[:4] == ["python", "-m", "pip", "install"]
            assert words[-1] == '".[${EXTRA}]"'
            # All that setuptools reads is there before the code is.
            project = (image / "pyproject.toml").read_text()
            for file in ("README.md", "LICENSE", "multistep_cm/__init__.py"):
                assert (image / file).exists()
            assert all(f"{extra} = [" in project for extra in ("tpu", "cuda"))
    assert installed
    entry = next(words for name, *words in steps if name == "ENTRYPOINT")
    assert "launch/in_container.sh" in " ".join(entry)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "python").symlink_to(sys.executable)
    done = run("in_container.sh", "--version", tools=tools, root=image)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", done.stdout)


def copy(source: Path, target: Path) -> None:
    """As COPY of a Dockerfile: a folder's contents, or a file into a folder."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif target.name == source.name:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    else:
        shutil.copy(source, target / source.name)


def test_no_secret_is_in_a_file() -> None:
    words = re.compile(
        r"(password|secret_?key|api_?key|access_?token|private_?key)\s*[=:]"
        r"|BEGIN [A-Z ]*PRIVATE|AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{30}",
        re.IGNORECASE,
    )
    for path in LAUNCH.rglob("*"):
        if path.is_file():
            assert not words.search(path.read_text()), path
