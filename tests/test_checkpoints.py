"""The checkpoint manager on a few arrays: damage, other models, other meshes."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from multistep_cm.checkpoints import Checkpoints, Trees
from multistep_cm.errors import UserError
from multistep_cm.sharding.mesh import make_mesh
from tests.training.tiny import assert_trees_equal

# TensorStore leaves a coroutine behind when it meets damage.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collected"),
]

CONFIG = {"seed": 0, "model": {"channels": (8, 16)}}


def trees(seed: int, rows: int = 64) -> Trees:
    """Random numbers, which no compression makes smaller."""
    rng = np.random.default_rng(seed)

    def tree() -> dict[str, Any]:
        kernel = rng.standard_normal((rows, 64)).astype(np.float32)
        return {"layer": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(64)}}

    optimizer = {"moments": tree(), "count": jnp.int32(seed)}
    return {"params": tree(), "ema": tree(), "optimizer": optimizer}


def like(tree: Any, sharding: Any = None) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding or x.sharding
        ),
        tree,
    )


def save(workdir: Path, *steps: int, keep: int = 5) -> None:
    with Checkpoints(workdir, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, trees(step), {"position": step}, CONFIG)


def data_file(workdir: Path, step: int, item: str) -> Path:
    """The largest file of an item: the arrays' bytes."""
    folder = workdir / "checkpoints" / str(step) / item
    files = [path for path in folder.rglob("*") if path.suffix != ".txt"]
    files = [path for path in files if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Path]:
    save(tmp_path, 2, 4)
    yield tmp_path


def test_what_was_saved_comes_back(saved: Path) -> None:
    with Checkpoints(saved, keep=5) as checkpoints:
        assert checkpoints.latest_step() == 4
        found = checkpoints.restore(like(trees(0)))
    assert found is not None
    step, restored, data_state = found
    assert (step, data_state) == (4, {"position": 4})
    assert_trees_equal(restored, trees(4))


def test_only_what_is_asked_for_is_read(saved: Path) -> None:
    data_file(saved, 4, "params").unlink()
    with Checkpoints(saved) as checkpoints:
        found = checkpoints.restore({"ema": like(trees(0)["ema"])})
    assert found is not None
    assert found[0] == 4
    assert set(found[1]) == {"ema"}
    assert_trees_equal(found[1]["ema"], trees(4)["ema"])


def test_an_empty_workdir_holds_none(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.restore(like(trees(0))) is None


def test_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, keep=2)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"3", "4"}


def test_a_step_is_saved_once(saved: Path) -> None:
    before = snapshot(saved)
    with Checkpoints(saved, keep=5) as checkpoints:
        checkpoints.save(4, trees(9), {"position": 9}, CONFIG)
    assert snapshot(saved) == before


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_position(path: Path) -> None:
    text = path.read_text()
    assert "4" in text
    path.write_text(text.replace("4", "6"))


def change_seed(path: Path) -> None:
    text = path.read_text()
    assert '"seed": 0' in text
    path.write_text(text.replace('"seed": 0', '"seed": 1'))


@pytest.mark.parametrize(
    ("item", "damage"),
    [
        ("params", flip_bit),
        ("ema", flip_bit),
        ("optimizer", flip_bit),
        ("optimizer", truncate),
        ("params", Path.unlink),
        ("digests", truncate),
        ("digests", flip_bit),
        ("data", change_position),
        ("config", change_seed),
        ("config", Path.unlink),
    ],
)
def test_a_damaged_step_is_set_aside_and_an_older_one_serves(
    saved: Path, capsys: pytest.CaptureFixture[str], item: str, damage: Any
) -> None:
    damage(data_file(saved, 4, item))
    with Checkpoints(saved, keep=5) as checkpoints:
        found = checkpoints.restore(like(trees(0)))
        assert found is not None
        assert found[0] == 2
        assert_trees_equal(found[1], trees(2))
        said = capsys.readouterr().out.splitlines()
        assert len(said) == 1
        assert said[0].startswith("checkpoint 4 cannot be used (")
        assert (saved / "broken" / "4-0").is_dir()
        # The run that goes on from step 2 comes to step 4 again.
        assert checkpoints.latest_step() == 2
        checkpoints.save(4, trees(4), {"position": 4}, CONFIG)
    with Checkpoints(saved, keep=5) as checkpoints:
        found = checkpoints.restore(like(trees(0)))
    assert found is not None
    assert found[0] == 4
    assert_trees_equal(found[1], trees(4))


def forget_a_leaf(path: Path) -> None:
    """Take one out of Orbax's list of leaves, which is good JSON afterwards."""
    values = json.loads(path.read_text())
    (name,) = [name for name in values["tree_metadata"] if "bias" in name]
    del values["tree_metadata"][name]
    path.write_text(json.dumps(values))


def test_damage_does_not_pass_for_another_model(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_a_leaf(saved / "checkpoints" / "4" / "params" / "_METADATA")
    with Checkpoints(saved, keep=5) as checkpoints:
        found = checkpoints.restore(like(trees(0)))
    assert found is not None
    assert found[0] == 2
    assert "params has not the leaves that were saved" in capsys.readouterr().out


def test_a_step_under_another_number_is_damage(saved: Path) -> None:
    folder = saved / "checkpoints"
    shutil.rmtree(folder / "4")
    shutil.copytree(folder / "2", folder / "4")
    with Checkpoints(saved, keep=5) as checkpoints:
        found = checkpoints.restore(like(trees(0)))
    assert found is not None
    assert (found[0], found[2]) == (2, {"position": 2})
    assert [path.name for path in (saved / "broken").iterdir()] == ["4-0"]


def test_no_good_step_is_an_error_and_not_a_new_run(saved: Path) -> None:
    for step in (2, 4):
        flip_bit(data_file(saved, step, "ema"))
    with (
        Checkpoints(saved, keep=5) as checkpoints,
        pytest.raises(UserError, match=r"none of the steps \[4, 2\] can be used"),
    ):
        checkpoints.restore(like(trees(0)))


def test_reading_changes_nothing(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_bit(data_file(saved, 4, "ema"))
    (saved / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir()
    before = snapshot(saved)
    with Checkpoints(saved) as checkpoints:
        found = checkpoints.restore({"ema": like(trees(0)["ema"])})
    assert found is not None
    assert found[0] == 2
    assert "skipped" in capsys.readouterr().out
    assert snapshot(saved) == before
    assert (saved / "checkpoints" / "6.orbax-checkpoint-tmp").is_dir()


def test_reading_where_nothing_was_saved(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore({"ema": like(trees(0)["ema"])}) is None
    assert not (tmp_path / "checkpoints").exists()


def test_a_save_that_was_cut_off_is_cleared_away(saved: Path) -> None:
    rest = saved / "checkpoints" / "6.orbax-checkpoint-tmp"
    (rest / "ema").mkdir(parents=True)
    save(saved, 6)
    assert not rest.exists()
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest_step() == 6


def other_shape(tree: Any) -> None:
    tree["layer"]["kernel"] = jax.ShapeDtypeStruct((32, 64), jnp.float32)


def other_dtype(tree: Any) -> None:
    tree["layer"]["kernel"] = jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)


def missing_key(tree: Any) -> None:
    del tree["layer"]["kernel"]


def extra_key(tree: Any) -> None:
    tree["layer"]["scale"] = jax.ShapeDtypeStruct((64,), jnp.float32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            other_shape,
            r"/kernel is float32\[64, 64\], expected float32\[32, 64\]",
        ),
        (other_dtype, r"params/layer/kernel is float32\[64, 64\], expected bfloat16"),
        (missing_key, r"params/layer/kernel is float32\[64, 64\], expected nothing"),
        (extra_key, r"params/layer/scale is missing, expected float32\[64\]"),
    ],
)
def test_another_model_is_the_users_error(saved: Path, change: Any, said: str) -> None:
    targets = like(trees(0))
    change(targets["params"])
    before = snapshot(saved)
    with (
        Checkpoints(saved, keep=5) as checkpoints,
        pytest.raises(UserError, match=said) as caught,
    ):
        checkpoints.restore(targets)
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(saved) == before


def test_a_checkpoint_of_one_mesh_is_read_on_another(tmp_path: Path) -> None:
    eight = make_mesh({"data": 1, "fsdp": 8, "tensor": 1})
    two = make_mesh({"data": 1, "fsdp": 1, "tensor": 2}, jax.devices()[:2])
    cut = NamedSharding(eight, PartitionSpec("fsdp"))
    whole = trees(3)
    placed = jax.tree.map(lambda x: jax.device_put(x, cut) if x.ndim else x, whole)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(3, placed, {"position": 3}, CONFIG)
    other = NamedSharding(two, PartitionSpec())
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore(like(whole, other))
    assert found is not None
    assert_trees_equal(found[1], whole)
    for leaf in jax.tree.leaves(found[1]):
        assert leaf.sharding == other


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_saved(saved: Path, value: float) -> None:
    bad = trees(6)
    bad["ema"]["layer"]["bias"] = bad["ema"]["layer"]["bias"].at[3].set(value)
    before = snapshot(saved)
    with (
        Checkpoints(saved, keep=5) as checkpoints,
        pytest.raises(FloatingPointError, match="/layer/bias"),
    ):
        checkpoints.save(6, bad, {"position": 6}, CONFIG)
    assert snapshot(saved) == before


def test_saved_arrays_may_be_donated_at_once(tmp_path: Path) -> None:
    zero = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)
    given = jax.tree.map(jnp.copy, trees(1, rows=512))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, given, {"position": 1}, CONFIG)
        jax.block_until_ready(zero(given))
        checkpoints.wait()
        found = checkpoints.restore(like(trees(1, rows=512)))
    assert found is not None
    assert_trees_equal(found[1], trees(1, rows=512))


def test_one_sha256_for_a_tree(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save(other, 4)
    with Checkpoints(saved) as first, Checkpoints(other) as second:
        found = first.tree_sha256(4, "ema")
        assert found == second.tree_sha256(4, "ema")
        assert found is not None
        assert len({found, *(first.tree_sha256(s, "params") for s in (2, 4))}) == 3
        assert first.tree_sha256(4, "nothing") is None
        assert first.tree_sha256(3, "ema") is None
