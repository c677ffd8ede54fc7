"""What every test shares: eight simulated devices, a compilation cache, the digits."""

import fcntl
import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Set before jax is imported, and inherited by the processes that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax")
)
# Small programs too: each worker and each process would compile the same ones again.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import jax
import pytest

# Not an environment variable: a process that a test starts has one device.
jax.config.update("jax_num_cpu_devices", 8)

# A simulated device that waits in a collective holds a thread of the pool that another
# device's convolution may wait for: without this, runs on few cores can lock up.
SAFE = "--xla_cpu_multi_thread_eigen=false"

# The fast tests compile for far longer than they compute: with these XLA compiles in
# less than half the time. Slow tests, and all that run beside them, do without, and so
# does a test that asks for `optimised`.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config: pytest.Config) -> None:
    """Chooses XLA's flags, before it reads them as it compiles for the first time."""
    is_fast = config.getoption("markexpr") == "not slow"
    os.environ.setdefault("XLA_FLAGS", f"{SAFE} {QUICK}" if is_fast else SAFE)


def pytest_collection_finish() -> None:
    """What the imports made stays: the garbage collector need not walk it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)


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
def optimised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs as a user gets them, where the point is what the compiler makes.

    Holds for what is lowered and compiled, as the step and the generators are.
    """
    options = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    compile_fully = functools.partialmethod(
        jax.stages.Lowered.compile, compiler_options=options
    )
    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_fully)


@pytest.fixture
def users_hlo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The HLO that a user gets: the level is of the machine code that is made of it."""
    compile_hlo = functools.partialmethod(
        jax.stages.Lowered.compile,
        compiler_options={"xla_cpu_use_fusion_emitters": True},
    )
    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_hlo)


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
