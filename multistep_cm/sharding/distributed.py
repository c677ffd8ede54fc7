"""This process among others: how they start, who writes files."""

import dataclasses
import importlib.util
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from multistep_cm.errors import UserError

SLURM_STEP = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
"""What `srun` sets for its tasks; a batch script or a login shell lacks some."""


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """How the processes of one run find each other.

    Attributes:
        coordinator: `host:port` of process 0; None leaves it to the environment.
        num_processes, process_id: of the run, and of this process in it.
        heartbeat_seconds: a process that is silent for so long counts as dead, and
            the others end.
        start_seconds: how long a process waits for the others at the start.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    heartbeat_seconds: int = 100
    start_seconds: int = 300


def find_cluster(variables: Mapping[str, str]) -> str:
    """Where several processes run, by the environment; "" for one process alone.

    "slurm" (a task of `srun`), "gketpu" (a TPU slice on GKE, also by JobSet), "k8s" (an
    indexed Kubernetes job, as JobSet makes them, with the package `kubernetes`) are
    names of JAX's own detection; "gcetpu" is a TPU VM, where only the metadata server
    knows whether there are others.
    """
    slurm = all(name in variables for name in SLURM_STEP)
    if slurm and int(variables["SLURM_NTASKS"]) > 1:
        return "slurm"
    hosts = variables.get("TPU_PROCESS_ADDRESSES") or variables.get(
        "TPU_WORKER_HOSTNAMES", ""
    )
    if hosts and ("," in hosts or int(variables.get("MEGASCALE_NUM_SLICES", "1")) > 1):
        return "gketpu"
    in_job = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= variables.keys()
    if in_job and not hosts and importlib.util.find_spec("kubernetes"):
        return "k8s"
    if not hosts and _has_tpu():
        return "gcetpu"
    return ""


def _has_tpu() -> bool:
    chips = (*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*"))
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def start_processes(options: ProcessOptions) -> None:
    """Join the other processes of this run, if there are any; before any device.

    They are named by `options`, or found by `find_cluster`; where neither says that
    there are several, nothing is started. Raises UserError when the options contradict
    each other, and when the others are not there in time.
    """
    if jax.distributed.is_initialized():
        return
    named = _check_options(options)
    cluster = "deactivate" if named else find_cluster(os.environ)
    if not cluster or options.num_processes == 1:
        return
    if named:
        _await_coordinator(options)
    # SIGTERM is the matter of `stopping.py`; JAX would keep it for itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.num_processes,
            options.process_id,
            # On a TPU VM all of JAX's detection: forced, it would not look whether
            # there is a slice at all.
            cluster_detection_method=None if cluster in ("gcetpu", "k8s") else cluster,
            initialization_timeout=options.start_seconds,
            heartbeat_timeout_seconds=options.heartbeat_seconds,
            # A process that has failed waits for the others only so long.
            shutdown_timeout_seconds=options.heartbeat_seconds,
        )
    except ValueError as error:
        if cluster != "gcetpu":
            raise UserError(f"the processes cannot start ({cluster}): {error}") from (
                error
            )
        # JAX found no slice: a single host.
    except RuntimeError as error:
        where = options.coordinator or f"the coordinator that {cluster} names"
        raise UserError(
            f"the processes did not meet at {where} within {options.start_seconds} s "
            f"({str(error).splitlines()[0]}): start all of them, let their port "
            "through, or raise --start_timeout"
        ) from error


def _await_coordinator(options: ProcessOptions) -> None:
    """Return when process 0 listens; UserError when it does not in time.

    JAX would end this process by a signal, with a stack trace.
    """
    address, seconds = options.coordinator or "", options.start_seconds
    if options.process_id == 0:
        others = (options.num_processes or 1) - 1
        print(f"waiting {seconds} s at most for {others} more at {address}", flush=True)
        return
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"process {options.process_id} found no process 0 at {address} "
                    f"within {seconds} s ({error}): start all of them, let their port "
                    "through, or raise --start_timeout"
                ) from error
            time.sleep(0.2)


def _check_options(options: ProcessOptions) -> bool:
    """Whether the processes are named; UserError when only half of it is said."""
    named = {
        "--coordinator": options.coordinator,
        "--num_processes": options.num_processes,
        "--process_id": options.process_id,
    }
    missing = [name for name, value in named.items() if value is None]
    if 0 < len(missing) < len(named):
        given = ", ".join(name for name in named if name not in missing)
        raise UserError(
            f"{given} without {' and '.join(missing)}: several processes need all "
            "three, one process needs none"
        )
    for name, seconds in (
        ("--heartbeat_timeout", options.heartbeat_seconds),
        ("--start_timeout", options.start_seconds),
    ):
        if seconds < 1:
            raise UserError(f"{name} is {seconds}, expected at least 1 second")
    if options.coordinator is None:
        return False
    host, _, port = options.coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(
            f"--coordinator is {options.coordinator!r}, expected HOST:PORT, such as "
            "10.0.0.1:8476"
        )
    number, index = options.num_processes or 0, options.process_id or 0
    if number < 1 or not 0 <= index < number:
        raise UserError(
            f"--process_id is {index} and --num_processes is {number}, expected an id "
            "from 0 to one less than the number"
        )
    return True


def is_main_process() -> bool:
    """Whether this process writes pictures, logs and configs."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Print a line once, not once a process."""
    if is_main_process():
        print(text, flush=True)


def to_host(array: jax.Array) -> np.ndarray:
    """The whole array on this host, also when other processes hold parts of it."""
    if not array.is_fully_addressable and not array.is_fully_replicated:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
