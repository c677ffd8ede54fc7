"""The rules of the house, checked on the syntax trees: who imports whom, and taste."""

import ast
import graphlib
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "multistep_cm"
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 79

# Parts that are pure are rooms of their own: others build on them.
PARTS = {
    "planning.chips": "chips",
    "planning.flops": "flops",
    "training.methods": "methods",
    "training.ema": "step",
    "training.finite": "step",
    "training.optimizer": "step",
    "training.state": "step",
    "training.step": "step",
}

# Which rooms each room may import besides itself. Imports go one way.
NUMERICS = {"diffusion", "errors", "losses", "models", "sharding"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "diffusion": set(),
    "losses": {"diffusion"},
    "truth": {"diffusion"},
    "models": set(),
    "data": {"errors", "files", "sharding"},
    "sharding": {"errors"},
    "reporting": {"errors", "files"},
    "values": {"errors"},
    "config": {"errors", "files", "values"},
    "workdir": {"config", "errors", "files"},
    "chips": set(),
    "flops": set(),
    "digests": {"sharding"},
    "checkpoints": {"digests", "errors", "sharding"},
    "factory": {"diffusion", "errors", "losses", "models"},
    "methods": {"diffusion", "losses"},
    "stages": {"errors"},
    "step": {"losses", "sharding"},
    "generation": NUMERICS | {"data", "factory", "methods", "step"},
    "validation": NUMERICS | {"config", "data", "files", "methods", "step"},
    "provenance": set(),
    "exporting": NUMERICS | {"factory", "files", "generation", "provenance"},
}
ROOMS["training"] = set(ROOMS)
ROOMS["evaluation"] = set(ROOMS)
ROOMS["inspection"] = set(ROOMS)
ROOMS["planning"] = set(ROOMS) - {"evaluation", "inspection"}
ROOMS["commands"] = set(ROOMS)

# The pure rooms may import nothing from outside but these, and no clock, file or log.
OUTSIDE = {"diffusion": {"jax"}, "losses": {"jax"}, "models": {"jax", "flax"}}
IMPURE = {"io", "logging", "os", "pathlib", "random", "subprocess", "time"}

FORBIDDEN_MODULES = [
    *["tensorflow", "keras", "tf_keras", "torch", "torchvision"],
    *["pickle", "cloudpickle", "dill", "joblib", "shelve"],
    *["clu.metric_writers", "clu.periodic_actions"],  # they import TensorFlow
    *["jax.experimental.pjit", "jax.experimental.shard_map"],
    "flax.training.checkpoints",
    *["benchmarks", "configs", "tests"],
]
FORBIDDEN_NAMES = {"nansum", "nanmean", "pmap", "pjit"}

# Declared because a library needs them without asking for them.
INDIRECT_DEPENDENCIES = {"flatbuffers", "importlib-resources"}

# Of an extra: imported where it is used, and a sentence says when it is not there.
OPTIONAL = {"transformers"}

# Steps of other repositories, which bring their own libraries.
PEERS = "benchmarks/peers/"


def imported_modules(tree: ast.AST, path: PurePosixPath) -> Iterator[str]:
    """Dotted names of all that is imported, at any depth; relative ones resolved.

    `from a.b import c` gives `a.b.c`, because c may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(path.parent.parts)[: len(path.parts) - node.level]
            start = ".".join(base) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function = ast.unparse(node.func)
            name = node.args[0]
            if function.endswith(("import_module", "__import__")) and isinstance(
                name, ast.Constant
            ):
                yield str(name.value)


def room_of(module: str) -> str:
    """The room of a dotted name that begins with the package's."""
    inner = module.split(".")[1:] or ["__init__"]
    part = PARTS.get(".".join(inner[:2]), inner[0])
    return "commands" if part == "__main__" else part


def import_violations(path: PurePosixPath, tree: ast.AST) -> Iterator[str]:
    room = room_of(".".join(path.with_suffix("").parts))
    modules = list(imported_modules(tree, path))
    if path.name == "__init__.py":
        yield from (f"__init__.py imports {module}" for module in modules)
        return
    if room not in ROOMS:
        yield f"the room {room} is not in the table ROOMS of this test"
        return
    for module in modules:
        if any(f"{module}.".startswith(f"{name}.") for name in FORBIDDEN_MODULES):
            yield f"imports {module}"
        top = module.partition(".")[0]
        if top == PACKAGE:
            if room_of(module) not in ROOMS[room] | {room, "__version__"}:
                yield f"{room} may not import {module}"
        elif room in OUTSIDE:
            inside = top in sys.stdlib_module_names and top not in IMPURE
            if not inside and top not in OUTSIDE[room]:
                yield f"{room} may not import {module}"


def names_in(node: ast.AST) -> set[str]:
    """Names that a single node mentions."""
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, ast.Attribute):
        return {node.attr}
    if isinstance(node, ast.ImportFrom):
        return {alias.name for alias in node.names}
    return set()


def sets_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign | ast.AugAssign | ast.Delete):
        targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
        return any(
            isinstance(target, ast.Subscript)
            and ast.unparse(target.value).endswith("environ")
            for target in targets
        )
    return isinstance(node, ast.Call) and bool(
        re.search(
            r"environ\.(setdefault|update|pop|clear)$|putenv$", ast.unparse(node.func)
        )
    )


def taste_violations(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        line = f"line {getattr(node, 'lineno', 0)}"
        for name in names_in(node) & FORBIDDEN_NAMES:
            yield f"{line} uses {name}"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{line} has a bare except"
        if isinstance(node, ast.Global):
            yield f"{line} has a global statement"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            yield f"{line} names allow_pickle; False is the default"
        if sets_environment(node):
            yield f"{line} sets an environment variable"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{line}: {node.name} has {length} lines"


def violations(path: str, source: str) -> list[str]:
    """What one file of the package does against the rules."""
    tree = ast.parse(source)
    where = PurePosixPath(path)
    found = [*import_violations(where, tree), *taste_violations(tree)]
    if where.stem in {"utils", "util", "helpers", "misc", "common"}:
        found.append("has a name that says nothing")
    return [f"{path}: {violation}" for violation in found]


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_package_keeps_the_rules() -> None:
    found = [
        violation
        for path in files(PACKAGE)
        for violation in violations(relative(path), path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


def test_no_file_is_long() -> None:
    everything = [*files(PACKAGE, "tests", "benchmarks", "configs")]
    everything += (p for p in (ROOT / "launch").rglob("*") if p.is_file())
    lengths = {
        relative(path): len(path.read_text("utf-8").splitlines()) for path in everything
    }
    assert lengths
    assert not {name: n for name, n in lengths.items() if n > MAX_FILE_LINES}


def test_rooms_form_no_cycle() -> None:
    graphlib.TopologicalSorter(ROOMS).prepare()
    assert set().union(*ROOMS.values()) <= set(ROOMS)


def test_every_folder_is_a_light_package() -> None:
    for folder in {path.parent for path in files(PACKAGE)}:
        path = folder / "__init__.py"
        assert path.exists(), f"{relative(path)} is missing"
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), relative(path)


def test_every_room_has_tests() -> None:
    rooms = {p.parent.name for p in (ROOT / PACKAGE).glob("*/*.py") if p.stem[0] != "_"}
    missing = {room for room in rooms if not [*(ROOT / "tests" / room).glob("test_*")]}
    assert not missing


def normal(name: str) -> str:
    """The normal form of a distribution's name, without bounds and extras."""
    found = re.match(r"[\w.-]+", name)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def test_dependencies_are_declared_and_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {normal(requirement) for requirement in project["dependencies"]}
    extras = project["optional-dependencies"].values()
    assert {normal(name) for extra in extras for name in extra} >= OPTIONAL
    distributions = importlib.metadata.packages_distributions()
    used: set[str] = set()
    undeclared = []
    for path in files(PACKAGE, "benchmarks", "configs"):
        if relative(path).startswith(PEERS):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        modules = imported_modules(tree, PurePosixPath(relative(path)))
        tops = {module.partition(".")[0] for module in modules}
        for top in tops - set(sys.stdlib_module_names) - {PACKAGE, "benchmarks"}:
            candidates = {normal(name) for name in distributions.get(top, [top])}
            used |= candidates & declared
            if not candidates & (declared | OPTIONAL):
                undeclared.append(f"{relative(path)} imports {top}")
    assert not undeclared
    assert not declared - used - INDIRECT_DEPENDENCIES


LONG = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("diffusion/a.py", "from multistep_cm.losses import denoising"),
        ("diffusion/a.py", "import multistep_cm.config"),
        ("diffusion/a.py", "from multistep_cm import config"),
        ("diffusion/a.py", "from ..losses import denoising"),
        ("diffusion/a.py", "from .. import config"),
        ("diffusion/a.py", "def f():\n    import flax"),
        ("diffusion/a.py", "import logging"),
        ("losses/a.py", "from multistep_cm.models import unet"),
        ("models/a.py", "import numpy as np"),
        ("models/a.py", "import optax"),
        ("data/a.py", "from multistep_cm.training import loop"),
        ("training/a.py", "from multistep_cm.commands import train"),
        ("training/a.py", "import configs.digits"),
        ("training/step.py", "from multistep_cm.training import loop"),
        ("generation.py", "from multistep_cm.training import loop"),
        ("nowhere/a.py", "x = 1"),
        ("data/__init__.py", "import jax"),
        ("data/a.py", "import tensorflow as tf"),
        ("data/a.py", "import importlib; importlib.import_module('torch.nn')"),
        ("data/a.py", "from clu import metric_writers"),
        ("data/a.py", "import pickle"),
        ("data/a.py", "import numpy as np; np.load('x', allow_pickle=True)"),
        ("data/utils.py", "x = 1"),
        ("training/a.py", "import jax; jax.pmap(f)"),
        ("training/a.py", "from jax import pmap"),
        ("training/a.py", "import jax.numpy as jnp; jnp.nansum(x)"),
        ("training/a.py", "try:\n    f()\nexcept:\n    pass"),
        ("training/a.py", "def f():\n    global x\n    x = 1"),
        ("training/a.py", "import os; os.environ['A'] = '1'"),
        ("training/a.py", "import os; os.environ.setdefault('A', '1')"),
        ("training/a.py", LONG),
    ],
)
def test_a_violation_is_found(path: str, source: str) -> None:
    assert violations(f"{PACKAGE}/{path}", source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("diffusion/a.py", "import math, jax\nfrom multistep_cm.diffusion import ddim"),
        ("diffusion/a.py", "from . import ddim\nfrom .ddim import ddim_step"),
        ("losses/a.py", "from ..diffusion import ddim"),
        ("models/a.py", "import flax.linen as nn"),
        ("data/a.py", "import tensorflow_datasets as tfds"),
        ("training/loop.py", "from multistep_cm.training import step"),
        ("training/loop.py", "from multistep_cm import generation"),
        ("generation.py", "from multistep_cm.training.methods import METHODS"),
        ("commands/a.py", "from multistep_cm import __version__, config"),
        ("__main__.py", "from multistep_cm.commands import main"),
        ("data/a.py", "import os; x = os.environ.get('A')"),
        ("data/a.py", "import numpy as np; np.load('x')"),
        ("training/a.py", LONG.rpartition("    x")[0]),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert not violations(f"{PACKAGE}/{path}", source)
