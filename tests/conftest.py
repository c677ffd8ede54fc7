"""What every test shares: eight simulated devices, a compilation cache, the digits."""

import fcntl
import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Set before jax is imported, and inherited by the processes that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# A simulated device that waits in a collective holds a thread of the pool that another
# device's convolution may wait for: without this, runs on few cores can lock up.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import hypothesis
import jax
import pytest

# Not an environment variable: a process that a test starts has one device.
jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile(
    "repeatable",
    deadline=None,  # the first example compiles
    derandomize=True,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
# For long searches: HYPOTHESIS_PROFILE=thorough, with another seed each time.
hypothesis.settings.register_profile(
    "thorough",
    hypothesis.settings.get_profile("repeatable"),
    derandomize=False,
    max_examples=2000,
    print_blob=True,
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 in jax for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def collected() -> Iterator[None]:
    """What the tests of a file leave behind ends with it, and warns in no other."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def digits_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `data.directory` that holds the prepared digits; made once for all workers."""
    # Here, so that a test without data does not wait for these imports.
    from multistep_cm.config import default_config
    from multistep_cm.data.sources import open_source

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    data = default_config().data
    data.directory = str(shared / "tfds")
    with (shared / "tfds.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        open_source(data, data.train_split)
    return shared / "tfds"


@pytest.fixture(scope="session")
def teacher_workdir(digits_directory: Path) -> Path:
    """A finished run of the smallest teacher, to read; made once for all workers."""
    from multistep_cm.training.loop import train
    from tests.training.tiny import one_device, tiny_config

    workdir = digits_directory.parent / "teacher"
    with (digits_directory.parent / "teacher.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "done").exists():
            with one_device():
                assert train(tiny_config(digits_directory), workdir)
            (workdir / "done").touch()
    return workdir
