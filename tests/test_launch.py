"""The scripts, run with a stand-in for Python that writes down what it was asked."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ["launch/environment.sh", "launch/quickstart.sh", "launch/test.sh", ".ci/run"]
# Tested in test_launch_clusters.py.
SCRIPTS += ["launch/xla_flags.sh", "launch/local_gpu.sh", "launch/tpu_pod.sh"]
SCRIPTS += ["launch/gke.sh", "launch/in_container.sh", "launch/slurm.sbatch"]
# All that the scripts may need of the system, then what the stand-in needs.
TOOLS = ["bash", "cksum", "dirname", "flock", "grep", "mkdir", "mktemp", "rm", "tail"]
TOOLS += ["tee", "touch", "chmod", "cp", "sleep"]
BASH = shutil.which("bash") or "bash"

# Answers the version check, makes .venv with itself in it, and otherwise notes its
# arguments in the file `calls`, failing at the module that FAILS names.
STAND_IN = """#!{bash}
if [[ $1 == -c && $2 == *ensurepip* ]]; then
  exit {lacks_venv}
elif [[ $1 == -c ]]; then
  exec {python} -I -S -c "import sys; sys.version_info = (3, {version}, 0); $2"
elif [[ $1 == -m && $2 == venv ]]; then
  [[ -e .venv/.installing ]] && rm -r .venv
  mkdir -p .venv/bin
  cp "$0" .venv/bin/python
  chmod +x .venv/bin/python
  printf 'venv %s\\n' "${{0##*/}}" >>calls
else
  printf '%s\\n' "$*" >>calls
  [[ $2 == pip ]] && sleep 0.2
  [[ $2 == pytest ]] && printf '3 passed in 0.12s\\n'
  [[ $2 != "${{FAILS:-}}" || ( $2 == pip && $3 == --version ) ]]
fi
"""


class Checkout:
    """A copy of the scripts without a package, beside a folder that is all of PATH."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a check out"
        self.tools = folder / "bin"
        (self.root / "launch").mkdir(parents=True)
        (self.root / ".ci").mkdir()
        for name in [*SCRIPTS, "pyproject.toml", "setup.py"]:
            shutil.copy(ROOT / name, self.root / name)
        self.tools.mkdir()
        for name in TOOLS:
            if found := shutil.which(name):
                (self.tools / name).symlink_to(found)

    def add_python(
        self, name: str = "python3", version: int = 11, lacks_venv: int = 0
    ) -> None:
        text = STAND_IN.format(
            bash=BASH, python=sys.executable, version=version, lacks_venv=lacks_venv
        )
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def start(self, script: str, *arguments: str, **variables: str) -> "Process":
        return subprocess.Popen(
            [BASH, str(self.root / script), *arguments],
            cwd=self.tools,
            env={"PATH": str(self.tools), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, script: str, *arguments: str, **variables: str
    ) -> tuple[int, str, str]:
        process = self.start(script, *arguments, **variables)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    def calls(self) -> list[str]:
        """What Python was asked since the last look."""
        path = self.root / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def installs(self) -> int:
        return sum(call.startswith("-m pip install") for call in self.calls())


Process = subprocess.Popen[str]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse(script: str) -> None:
    subprocess.run([BASH, "-n", ROOT / script], check=True)


# The extra `dev` brings it into the environment, whose programs PATH need not name.
SHELLCHECK = shutil.which("shellcheck", path=Path(sys.executable).parent)
SHELLCHECK = SHELLCHECK or shutil.which("shellcheck")


@pytest.mark.skipif(not SHELLCHECK, reason="no shellcheck here")
def test_shellcheck_is_content() -> None:
    subprocess.run([SHELLCHECK or "", "-x", *SCRIPTS], cwd=ROOT, check=True)


@pytest.mark.parametrize("script", ["launch/quickstart.sh", "launch/test.sh"])
def test_old_python_is_one_sentence(checkout: Checkout, script: str) -> None:
    checkout.add_python(version=10)
    status, output, errors = checkout.run(script)
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert "Python 3.11 or newer" in errors
    assert not (checkout.root / ".venv").exists()


def test_no_python_is_one_sentence(checkout: Checkout) -> None:
    status, _, errors = checkout.run("launch/test.sh")
    assert (status, errors.count("\n")) == (1, 1)
    assert "Python 3.11 or newer" in errors


def test_missing_venv_module_is_one_sentence(checkout: Checkout) -> None:
    checkout.add_python(lacks_venv=1)
    status, _, errors = checkout.run("launch/test.sh")
    assert (status, errors.count("\n")) == (1, 1)
    assert "python3-venv" in errors


def test_wrong_named_python_is_one_sentence(checkout: Checkout) -> None:
    checkout.add_python()
    status, _, errors = checkout.run("launch/test.sh", PYTHON="/no/such/python")
    assert (status, errors.count("\n")) == (1, 1)
    assert "PYTHON=/no/such/python" in errors


def test_a_suitable_python_is_found(checkout: Checkout) -> None:
    """Past one that is only a name, and one without venv."""
    checkout.add_python("python3.13", version=10)
    checkout.add_python("python3.12", lacks_venv=1)
    checkout.add_python("python3")
    assert checkout.run("launch/test.sh")[0] == 0
    assert checkout.calls()[0] == "venv python3"


def test_named_python_is_used(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.add_python("other")
    assert checkout.run("launch/test.sh", PYTHON="other")[0] == 0
    assert checkout.calls()[0] == "venv other"


def test_order_and_second_run(checkout: Checkout) -> None:
    checkout.add_python()
    checks = ["-m ruff check .", "-m ruff format --check .", "-m mypy"]
    status, _, errors = checkout.run("launch/test.sh")
    assert (status, errors) == (0, "")
    calls = checkout.calls()
    assert calls[0] == "venv python3"
    assert calls[1].startswith("-m pip install")
    assert calls[1].endswith("-e .[test,dev]")
    assert calls[2:] == [*checks, "-m pytest -n 2 --dist=worksteal"]

    assert checkout.run("launch/test.sh")[0] == 0
    assert checkout.calls() == [*checks, "-m pytest -n 2 --dist=worksteal"]


def test_arguments_reach_pytest(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.run("launch/test.sh", "tests/a b.py", "--slow", "-x")
    assert checkout.calls()[-1] == "-m pytest tests/a b.py -x -m "
    checkout.run("launch/test.sh", "--slow")
    assert checkout.calls()[-1] == "-m pytest -n 2 --dist=worksteal -m "


def test_quickstart(checkout: Checkout) -> None:
    checkout.add_python()
    assert checkout.run("launch/quickstart.sh", "--flag=a b")[0] == 0
    calls = checkout.calls()
    assert calls[1].endswith("-e .")
    assert calls[2:] == ["-m benchmarks.quickstart --flag=a b"]
    # What the tests need is more, and includes what the quickstart needs.
    checkout.run("launch/test.sh")
    assert checkout.installs() == 1
    checkout.run("launch/quickstart.sh")
    assert checkout.installs() == 0


def test_a_failed_check_does_not_hide_the_others(checkout: Checkout) -> None:
    checkout.add_python()
    status, output, errors = checkout.run("launch/test.sh", FAILS="mypy")
    assert status == 1
    assert "3 passed" in output
    assert errors == "Not passed: mypy.\n"


def test_changed_dependencies_are_installed(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.run("launch/test.sh")
    assert checkout.installs() == 1
    with (checkout.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    checkout.run("launch/test.sh")
    assert checkout.installs() == 1


def test_failed_installation_is_tried_again(checkout: Checkout) -> None:
    checkout.add_python()
    status, _, errors = checkout.run("launch/test.sh", FAILS="pip")
    assert status == 1
    assert "pip could not install" in errors
    assert checkout.installs() == 1
    assert checkout.run("launch/test.sh")[0] == 0
    calls = checkout.calls()
    assert not any(call.startswith("venv") for call in calls)
    assert any(call.startswith("-m pip install") for call in calls)


def test_killed_installation_starts_again(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.run("launch/test.sh")
    checkout.calls()
    (checkout.root / ".venv" / ".installing").touch()
    checkout.run("launch/test.sh")
    assert checkout.calls()[0] == "venv python3"


def test_broken_environment_starts_again(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.run("launch/test.sh")
    checkout.calls()
    (checkout.root / ".venv" / "bin" / "python").unlink()
    checkout.run("launch/test.sh")
    assert checkout.calls()[0] == "venv python3"


@pytest.mark.skipif(not shutil.which("flock"), reason="no flock here")
def test_two_at_once_install_once(checkout: Checkout) -> None:
    checkout.add_python()
    processes = [checkout.start("launch/test.sh") for _ in range(3)]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert checkout.installs() == 1


@pytest.mark.parametrize("fails", ["", "pytest"])
def test_continuous_integration(checkout: Checkout, fails: str) -> None:
    checkout.add_python()
    status, output, _ = checkout.run(".ci/run", FAILS=fails)
    assert status == (1 if fails else 0)
    assert output.splitlines()[-1] == "3 passed in 0.12s"
    assert not [*(checkout.root / ".cache").glob("ci.*")]
