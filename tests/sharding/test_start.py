"""How processes find each other: what is detected, what is refused, real starts."""

import importlib.util
import socket
import subprocess
import sys
from typing import Any

import jax
import pytest

from multistep_cm.errors import UserError
from multistep_cm.sharding import distributed
from multistep_cm.sharding.distributed import (
    ProcessOptions,
    find_cluster,
    start_processes,
)
from tests.sharding.processes import free_address, outputs, several

SLURM = {
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
}
JOBSET = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TPU, and no package `kubernetes`, whatever this machine has."""
    monkeypatch.setattr(distributed, "_has_tpu", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ""),
        (SLURM, "slurm"),
        ({**SLURM, "SLURM_NTASKS": "1"}, ""),
        # A batch script or a login shell of a job is no task of srun.
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, "gketpu"),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_ID": "1"}, "gketpu"),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
        (JOBSET, ""),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),
    ],
)
def test_where_there_are_several(variables: dict[str, str], expected: str) -> None:
    assert find_cluster(variables) == expected


def test_what_the_machine_has_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert find_cluster(JOBSET) == "k8s"
    assert find_cluster({**JOBSET, "TPU_WORKER_HOSTNAMES": "a,b"}) == "gketpu"
    assert find_cluster({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == ""
    monkeypatch.setattr(distributed, "_has_tpu", lambda: True)
    assert find_cluster({}) == "gcetpu"
    # One host by GKE's own word: nobody is asked.
    assert find_cluster({"TPU_WORKER_HOSTNAMES": "localhost"}) == ""


@pytest.fixture
def initialized(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What JAX is asked to start, in place of starting it."""
    asked: list[dict[str, Any]] = []
    names = ("coordinator_address", "num_processes", "process_id")

    def initialize(*values: Any, **named: Any) -> None:
        asked.append({**dict(zip(names, values, strict=True)), **named})

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(distributed, "_await_coordinator", lambda options: None)
    for name in (*SLURM, "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_one_process_starts_nothing(initialized: list[dict[str, Any]]) -> None:
    start_processes(ProcessOptions())
    start_processes(ProcessOptions("localhost:1", 1, 0))
    assert not initialized


def test_named_processes_are_not_looked_for(
    initialized: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    start_processes(ProcessOptions("h:1", 4, 2, heartbeat_seconds=7, start_seconds=9))
    (asked,) = initialized
    assert asked["coordinator_address"] == "h:1"
    assert (asked["num_processes"], asked["process_id"]) == (4, 2)
    assert asked["cluster_detection_method"] == "deactivate"
    assert asked["heartbeat_timeout_seconds"] == 7
    assert asked["initialization_timeout"] == 9


def test_tasks_of_slurm_are_found(
    initialized: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    start_processes(ProcessOptions())
    assert initialized[0]["cluster_detection_method"] == "slurm"
    assert initialized[0]["coordinator_address"] is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"coordinator": "h:1"}, "without --num_processes and --process_id"),
        ({"num_processes": 2, "process_id": 0}, "without --coordinator"),
        ({"coordinator": "h", "num_processes": 2, "process_id": 0}, "HOST:PORT"),
        ({"coordinator": ":1", "num_processes": 2, "process_id": 0}, "HOST:PORT"),
        ({"coordinator": "h:x", "num_processes": 2, "process_id": 0}, "HOST:PORT"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "is 2"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": -1}, "is -1"),
        ({"coordinator": "h:1", "num_processes": 0, "process_id": 0}, "is 0"),
        ({"heartbeat_seconds": 0}, "--heartbeat_timeout is 0"),
        ({"start_seconds": -1}, "--start_timeout is -1"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        start_processes(ProcessOptions(**options))
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


MEET = """
import sys
from multistep_cm.sharding.distributed import ProcessOptions, start_processes
from multistep_cm.sharding.agreement import gather_text
start_processes(ProcessOptions(start_seconds=60, heartbeat_seconds=10))
import jax
print("met", jax.process_index(), jax.process_count(), gather_text(sys.argv[1]))
"""


def free_port() -> int:
    return int(free_address().rpartition(":")[2])


def free_slurm_job() -> str:
    """A job number whose port, as JAX derives it, is free on this machine."""
    for job in range(71, 200):
        with socket.socket() as free:
            if free.connect_ex(("localhost", job % 4096 + 65535 - 4096 + 1)):
                return str(job)
    raise AssertionError("no port is free")


def cluster_variables(cluster: str, process: int) -> dict[str, str]:
    if cluster == "slurm":
        return {
            **SLURM,
            "SLURM_JOB_ID": free_slurm_job(),
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(process),
            "SLURM_LOCALID": str(process),
        }
    return {
        "TPU_WORKER_HOSTNAMES": "localhost,localhost",
        "TPU_WORKER_ID": str(process),
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
    }


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["slurm", "gketpu"])
def test_two_processes_meet_by_their_environment(cluster: str) -> None:
    variables = [cluster_variables(cluster, process) for process in range(2)]
    if cluster == "gketpu":
        port = str(free_port())
        variables = [{**v, "JAX_COORDINATOR_PORT": port} for v in variables]
    commands = [[sys.executable, "-c", MEET, text] for text in ("long", "s")]
    with several(commands, devices=2, variables=variables) as processes:
        said = outputs(processes)
        assert [process.returncode for process in processes] == [0, 0], said
    for index, text in enumerate(said):
        assert f"met {index} 2 ['long', 's']" in text


def test_a_process_that_waits_in_vain_says_so() -> None:
    command = [sys.executable, "-m", "multistep_cm", "sample", "--workdir=x"]
    command += [f"--coordinator={free_address()}", "--num_processes=2"]
    command += ["--process_id=1", "--start_timeout=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "process 1 found no process 0 at 127.0.0.1" in done.stderr
    assert "within 3 s" in done.stderr
