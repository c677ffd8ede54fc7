"""Digests by pieces: any mesh verifies what any other has saved."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from multistep_cm import digests
from multistep_cm.checkpoints import Checkpoints, Trees
from multistep_cm.sharding import rules
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.sharding.rules import place_abstract, tree_shardings
from tests.test_checkpoints import CONFIG, data_file, flip_bit, trees
from tests.training.tiny import assert_trees_equal

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

Sizes = tuple[int, int, int]
CUT: Sizes = (1, 8, 1)


@pytest.fixture(autouse=True)
def small_leaves_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "SMALLEST_CUT", 4096)


def mesh_of(sizes: Sizes) -> Mesh:
    devices = jax.devices()[: int(np.prod(sizes))]
    return make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)), devices)


def placed(step: int, mesh: Mesh) -> Trees:
    """Kernels are cut over the mesh, biases and scalars are whole on each device."""
    tree = trees(step, rows=256)
    return jax.device_put(tree, tree_shardings(tree, mesh))


def save_two(workdir: Path, mesh: Mesh) -> None:
    with Checkpoints(workdir, keep=5) as checkpoints:
        for step in (2, 4):
            state = placed(step, mesh)
            checkpoints.save(step, state, {"position": step}, CONFIG)


def restore(workdir: Path, mesh: Mesh) -> int:
    """The step that was restored, with the values and shardings that are expected."""
    targets = place_abstract(trees(0, rows=256), mesh)
    with Checkpoints(workdir, keep=5) as checkpoints:
        found = checkpoints.restore(targets)
    assert found is not None
    assert_trees_equal(found[1], trees(found[0], rows=256))
    for leaf, target in zip(
        jax.tree.leaves(found[1]), jax.tree.leaves(targets), strict=True
    ):
        assert leaf.sharding == target.sharding
    return found[0]


def manifest(workdir: Path, step: int) -> Path:
    return workdir / "checkpoints" / str(step) / "digests" / "metadata"


def sha(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("saved_on", "read_on"),
    [
        (CUT, CUT),
        (CUT, (8, 1, 1)),
        (CUT, (2, 4, 1)),
        (CUT, (1, 2, 4)),
        (CUT, (1, 1, 1)),
        ((8, 1, 1), CUT),
        ((2, 4, 1), CUT),
        ((1, 2, 4), CUT),
        ((1, 1, 1), CUT),
    ],
)
def test_a_flipped_bit_is_found_on_any_mesh(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    saved_on: Sizes,
    read_on: Sizes,
) -> None:
    save_two(tmp_path, mesh_of(saved_on))
    mesh = mesh_of(read_on)
    assert restore(tmp_path, mesh) == 4
    flip_bit(data_file(tmp_path, 4, "optimizer"))
    assert restore(tmp_path, mesh) == 2
    said = capsys.readouterr().out
    assert "checkpoint 4 cannot be used (optimizer/" in said
    assert "has another sha256 than when it was saved" in said
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["4-0"]


def test_what_is_recorded(tmp_path: Path) -> None:
    """Against hashlib on numpy's slices; pieces of the whole on another mesh."""
    save_two(tmp_path, mesh_of(CUT))
    recorded = json.loads(manifest(tmp_path, 4).read_text())
    leaves = {
        key: np.asarray(leaf) for key, leaf in digests.leaf_names(trees(4, 256)["ema"])
    }
    kernel = leaves["/layer/kernel"]
    assert kernel.shape == (256, 64)
    assert recorded["ema"] == {
        "/layer/bias": sha(leaves["/layer/bias"]),
        "/layer/kernel": {
            f"{row}:{row + 32},0:64": sha(kernel[row : row + 32])
            for row in range(0, 256, 32)
        },
    }
    assert recorded["config"] == {"": digests.json_digest(CONFIG)}
    assert {path.name for path in manifest(tmp_path, 4).parent.iterdir()} <= {
        "metadata",
        "commit_success.txt",
    }


def first_format(workdir: Path, step: int) -> None:
    """The digests as the first checkpoints had them: of whole leaves, no config."""
    whole: dict[str, Any] = {
        name: {key: sha(np.asarray(leaf)) for key, leaf in digests.leaf_names(tree)}
        for name, tree in trees(step, rows=256).items()
    }
    whole["data"] = {"": digests.json_digest({"position": step})}
    manifest(workdir, step).write_text(json.dumps(whole))


def test_digests_of_whole_leaves_are_still_verified(tmp_path: Path) -> None:
    mesh = mesh_of(CUT)
    save_two(tmp_path, mesh)
    first_format(tmp_path, 4)
    assert restore(tmp_path, mesh) == 4
    flip_bit(data_file(tmp_path, 4, "params"))
    assert restore(tmp_path, mesh) == 2


@pytest.mark.parametrize("loss", ["piece", "leaf", "tree", "data"])
def test_a_digest_that_is_missing_is_damage(tmp_path: Path, loss: str) -> None:
    mesh = mesh_of(CUT)
    save_two(tmp_path, mesh)
    path = manifest(tmp_path, 4)
    recorded = json.loads(path.read_text())
    if loss == "piece":
        recorded["ema"]["/layer/kernel"].pop("32:64,0:64")
    elif loss == "leaf":
        recorded["ema"].pop("/layer/bias")
    else:
        recorded.pop("ema" if loss == "tree" else "data")
    path.write_text(json.dumps(recorded))
    assert restore(tmp_path, mesh) == 2


def test_no_bit_of_the_digests_ends_a_run(tmp_path: Path) -> None:
    """Whatever it makes of their names and numbers, a step that is good comes back."""
    mesh = mesh_of(CUT)
    save_two(tmp_path, mesh)
    path = manifest(tmp_path, 4)
    sound = path.read_bytes()
    targets = place_abstract({"ema": trees(0, rows=256)["ema"]}, mesh)
    start = sound.index(b'"ema"')
    with Checkpoints(tmp_path) as checkpoints:
        for place in range(start, start + 200, 3):
            damaged = bytearray(sound)
            damaged[place] ^= 1 << place % 7
            path.write_bytes(damaged)
            found = checkpoints.restore(targets)
            assert found is not None
            assert found[0] == 2
        path.write_text("[1, 2]")
        found = checkpoints.restore(targets)
        assert found is not None
        assert found[0] == 2


def test_a_number_that_is_not_finite_is_named(tmp_path: Path) -> None:
    """In one shard of one leaf, and then nothing is written."""
    state = placed(6, mesh_of(CUT))
    kernel = state["ema"]["layer"]["kernel"]
    state["ema"]["layer"]["kernel"] = kernel.at[200, 3].set(jnp.nan)
    with (
        Checkpoints(tmp_path, keep=2) as checkpoints,
        pytest.raises(FloatingPointError, match=r"^ema/layer/kernel holds"),
    ):
        checkpoints.save(6, state, {"position": 6}, CONFIG)
    assert not [*(tmp_path / "checkpoints").iterdir()]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8, jnp.bool_])
def test_other_dtypes(tmp_path: Path, dtype: Any) -> None:
    """Those of which numpy makes no buffer too."""
    where = NamedSharding(mesh_of(CUT), PartitionSpec("fsdp"))
    values = jnp.arange(128).reshape(64, 2).astype(dtype)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, {"ema": {"a": jax.device_put(values, where)}}, {}, CONFIG)
    like = {"a": jax.ShapeDtypeStruct(values.shape, dtype, sharding=where)}
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore({"ema": like})
    assert found is not None
    assert_trees_equal(found[1]["ema"]["a"], values)
