"""Data, checkpoints and weight files cannot bring code: what docs/security.md says."""

import ast
import io
import pickle
import re
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multistep_cm.checkpoints import Checkpoints
from multistep_cm.errors import UserError
from multistep_cm.evaluation import classifier
from multistep_cm.evaluation.features import load_classifier
from multistep_cm.evaluation.npz import load_samples, read_arrays
from multistep_cm.evaluation.torch_file import read_tensors
from multistep_cm.sharding.mesh import make_mesh
from tests.test_checkpoints import like, save, trees

ROOT = Path(__file__).parents[1]

MODULES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("yaml", "torch", "code", "codeop", "runpy", "xmlrpc"),
}
CALLS = {
    *("eval", "exec", "compile", "__import__", "literal_eval", "extractall", "mktemp"),
    *("os.system", "os.popen", "np.load", "numpy.load", "jnp.load"),
    *("jax.export.deserialize", "export.deserialize"),
}
IMPORTERS = {
    "multistep_cm/commands/main.py": "the module of a command, of a fixed list",
    "multistep_cm/config.py": "a config file, which is code",
}
"""The only files that import what is not named in their source, and what that is."""

PROGRAMS = {
    "multistep_cm/training/tracing.py": "the compilation cache, whose machine code "
    "JAX runs anyway",
}
"""The only files that read programs, and from where."""


def dangers(path: str, source: str) -> Iterator[str]:
    """What in a file could run code that is not in this repository."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            if name.partition(".")[0] in MODULES:
                yield f"{path} imports {name}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called.endswith("export.deserialize") and path in PROGRAMS:
            continue
        if called in CALLS or called.rpartition(".")[2] in ("extractall", "mktemp"):
            yield f"{path}:{node.lineno} calls {called}"
        last = called.rpartition(".")[2]
        if last in ("import_module", "spec_from_file_location", "exec_module"):
            constant = node.args and isinstance(node.args[0], ast.Constant)
            if not constant and path not in IMPORTERS:
                yield f"{path}:{node.lineno} imports what it is told"
        for keyword in node.keywords:
            true = ast.unparse(keyword.value) != "False"
            if keyword.arg in ("allow_pickle", "shell", "weights_only") and true:
                yield f"{path}:{node.lineno} says {ast.unparse(keyword)}"


def test_the_package_runs_no_code_that_it_is_given() -> None:
    paths = sorted((ROOT / "multistep_cm").rglob("*.py"))
    assert len(paths) > 50
    found = [
        danger
        for path in paths
        for danger in dangers(
            path.relative_to(ROOT).as_posix(), path.read_text("utf-8")
        )
    ]
    assert not found


def test_the_files_that_may_do_so() -> None:
    for path in (*IMPORTERS, *PROGRAMS):
        assert [*dangers("elsewhere.py", (ROOT / path).read_text("utf-8"))]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "import torch.serialization",
        "eval('1')",
        "import numpy as np\nnp.load('x')",
        "f('x', allow_pickle=True)",
        "subprocess.run('x', shell=True)",
        "import importlib\nimportlib.import_module(name)",
        "archive.extractall('.')",
        "from jax import export\nexport.deserialize(read())",
    ],
)
def test_a_danger_is_found(source: str) -> None:
    assert [*dangers("multistep_cm/a.py", source)]


WRITES = re.compile(r"\.write_(text|bytes)\(|open\([^)]*[\"'][wxa]b?[\"']|savez")
WRITERS = {
    "multistep_cm/digests.py": "in the folder that Orbax renames when all is there",
    "multistep_cm/files.py": "the helper, and a lock",
    "multistep_cm/training/watchdog.py": "the stacks of a run that ends right there",
    "multistep_cm/reporting/metrics.py": "a file that grows by lines",
    "multistep_cm/reporting/events.py": "a file that grows by records",
}
"""The only files that write otherwise than aside, and why they may."""


def test_every_file_is_written_aside() -> None:
    found = []
    for path in sorted((ROOT / "multistep_cm").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        lines = enumerate(path.read_text("utf-8").splitlines(), 1)
        found += [
            f"{name}:{number} {line.strip()}"
            for number, line in lines
            if WRITES.search(line) and "aside" not in line and name not in WRITERS
        ]
    # This one's line before is `with written_aside(path) as aside, aside.open(..)`.
    assert [line.partition(":")[0] for line in found] == [
        "multistep_cm/evaluation/npz.py"
    ]


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """A file that a payload would make; it is not there at the end of a test."""
    path = tmp_path / "it_ran"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists(), "the payload works where it is unpickled"
    path.unlink()
    yield path
    assert not path.exists()


@pytest.mark.parametrize("name", ["arr_0", "arr_1", "params/x", "mu", "fingerprint"])
def test_an_npz_with_objects(name: str, mark: Path, tmp_path: Path) -> None:
    path = tmp_path / "evil.npz"
    objects = np.array([Payload(mark)], object)
    plain = {"arr_0": np.zeros((1, 2, 2, 1), np.uint8)}
    np.savez(path, **{**plain, name: objects})  # type: ignore[arg-type]
    readers: tuple[Callable[[Path], Any], ...]
    readers = (load_samples, load_classifier, read_arrays)
    for read in readers:
        with pytest.raises(Exception, match="pickled objects, not numbers"):
            read(path)


def test_an_npz_in_the_place_of_a_cache_is_made_again(
    mark: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "classifier.npz"
    np.savez(path, fingerprint=np.array([Payload(mark)], object))

    def stop(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(classifier, "train_classifier", stop)
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, int)
    with pytest.raises(InterruptedError):
        classifier.load_or_train(path, images, labels, images, labels, 2)
    assert "cannot be read" in capsys.readouterr().out


def torch_zip(path: Path, description: bytes, name: str = "model/data.pkl") -> Path:
    """A file in torch's layout with this description."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, description)
        archive.writestr("model/data/0", bytes(16))
        archive.writestr("../../escaped", b"x")
        archive.writestr("/tmp/../escaped", b"x")
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_weights_with_a_payload(protocol: int, mark: Path, tmp_path: Path) -> None:
    for value in (Payload(mark), {"weight": Payload(mark)}, [Payload(mark)]):
        evil = pickle.dumps(value, protocol)
        path = torch_zip(tmp_path / "evil.pth", evil)
        with pytest.raises(ValueError, match=r"."):
            read_tensors(path)
        path.write_bytes(evil)  # the layout before that of archives
        with pytest.raises(ValueError, match=r"."):
            read_tensors(path)


def test_names_that_lead_out_of_an_archive(tmp_path: Path) -> None:
    """Nothing is written, whatever an archive calls its entries."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    path = torch_zip(inner / "evil.pth", pickle.dumps({}), "../../../x/data.pkl")
    before = sorted(tmp_path.rglob("*"))
    read_or_refuse(read_tensors, path)
    with zipfile.ZipFile(inner / "evil.npz", "w") as archive:
        for name in ("../../arr_0.npy", "/arr_1.npy", "arr_0.npy"):
            file = io.BytesIO()
            np.save(file, np.zeros((1, 2, 2, 1), np.uint8))
            archive.writestr(name, file.getvalue())
    arrays = read_arrays(inner / "evil.npz")
    assert set(arrays) == {"../../arr_0", "/arr_1", "arr_0"}  # names, and no files
    assert sorted(tmp_path.rglob("*")) == sorted([*before, inner / "evil.npz"])


def read_or_refuse(read: Callable[[Path], Any], path: Path) -> None:
    try:
        read(path)
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize(
    "kind", ["npz header", "npz bomb", "torch bomb", "torch shape"]
)
def test_declared_sizes_are_not_believed(kind: str, tmp_path: Path) -> None:
    """A terabyte that is not there is refused, and never asked of the system."""
    path = tmp_path / "huge"
    read: Callable[[Path], Any] = read_arrays
    if kind == "npz header":
        file = io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": (2**40,)}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("arr_0.npy", file.getvalue())
    elif kind == "npz bomb":
        packed = zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", packed, compresslevel=1) as archive:
            archive.writestr("arr_0.npy", bytes(2**28 + 1))
    elif kind == "torch bomb":
        read = read_tensors
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("model/data.pkl", bytes(2**20))
    else:
        read = read_tensors
        text = (Path(__file__).parent / "evaluation" / "data" / "zip.pth").read_bytes()
        with (
            zipfile.ZipFile(io.BytesIO(text)) as old,
            zipfile.ZipFile(path, "w") as new,
        ):
            for name in old.namelist():
                data = old.read(name)
                if name.endswith("data.pkl"):  # the shape of `weight`, of three numbers
                    assert b"K\x03\x85" in data
                    data = data.replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85", 1)
                new.writestr(name, data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"."):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_a_checkpoint_that_names_code(
    mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax writes the names of its classes; nobody's are looked up when we read."""
    save(tmp_path / "run", 2)
    module = "code_that_comes_with_a_checkpoint"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / f"{module}.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path / "path")
    changed = 0
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file() and path.read_bytes()[:1] == b"{":
            text = path.read_text()
            other = re.sub(
                r"(orbax|multistep_cm|jax)(\.\w+)+", f"{module}.Handler", text
            )
            path.write_text(other)
            changed += other != text
    assert changed
    with Checkpoints(tmp_path / "run") as checkpoints:
        with pytest.raises(UserError, match="none of the steps"):
            checkpoints.restore(like(trees(0)))
        assert [*checkpoints.verify(make_mesh({"data": 1, "fsdp": -1, "tensor": 1}))]
    assert module not in sys.modules
