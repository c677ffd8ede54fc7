"""The one checkpoint manager: state, data position and config in one Orbax save.

Each tree is an item of its own, so that a sampler reads only the averaged weights.
Beside them stand the config, the data position and `digests`, the sha256 of each leaf:
Orbax notices missing files but no flipped bit, so every restore verifies the digests.
A step that cannot be used is reported and moved to `broken/`; the next older serves.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from multistep_cm.errors import UserError
from multistep_cm.sharding.agreement import check_same, gather_text
from multistep_cm.sharding.distributed import is_main_process, say, to_host

TREE_ITEMS = ("params", "ema", "target", "optimizer")
JSON_ITEMS = ("data", "config", "digests")

Trees = dict[str, Any]
"""A name of `TREE_ITEMS` to a pytree of arrays, or of shapes to restore into."""


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which leaves the question of a stop to the train loop.

    Its own question to JAX counts steps, the loop's counts rounds: JAX would take one
    count for the other and stop the processes never, or at different steps.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one workdir; leaving the context waits for the last save."""

    def __init__(self, workdir: Path, keep: int | None = None) -> None:
        """Open `workdir/checkpoints`: to read, or to write and `keep` the newest."""
        self.directory = workdir.resolve() / "checkpoints"
        self._read_only = keep is None
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=not self._read_only,
                cleanup_tmp_directories=not self._read_only,
            ),
            item_handlers={
                **{name: ocp.StandardCheckpointHandler() for name in TREE_ITEMS},
                **{name: ocp.JsonCheckpointHandler() for name in JSON_ITEMS},
            },
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest step that is listed, verified or not; None when there is none."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        trees: Trees,
        data_state: Mapping[str, Any],
        config: Mapping[str, Any],
    ) -> None:
        """Copy the trees off the devices and write them in the background.

        The caller may donate the arrays as soon as this returns. Raises
        FloatingPointError for a leaf that is not finite, and whatever an earlier
        background save ran into. A step that is already saved is left alone.
        """
        self._manager.check_for_errors()
        if step in self._manager.all_steps():
            return
        digests = {name: _digests(tree) for name, tree in trees.items()}
        digests["data"] = {"": _json_digest(data_state)}
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                **items,
                data=ocp.args.JsonSave(dict(data_state)),
                config=ocp.args.JsonSave(dict(config)),
                digests=ocp.args.JsonSave(digests),
            ),
        )
        if not saved:
            raise RuntimeError(
                f"Orbax did not save step {step} in {self.directory}; steps there: "
                f"{self._manager.all_steps()}"
            )

    def wait(self) -> None:
        """Return when the last save is on disk; raise what it ran into."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def restore(self, targets: Trees) -> tuple[int, Trees, dict[str, Any]] | None:
        """The newest good step: its number, the trees asked for, the data position.

        `targets` hold `jax.ShapeDtypeStruct` with shardings, of any mesh; restored
        arrays come in those shapes, dtypes and shardings. None when there is no
        checkpoint. Raises UserError when there are steps but none is good, and when a
        tree is of another model (naming the leaf).
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        check_same(
            {"the list of steps in checkpoints/": steps},
            "several processes need one folder that all of them share",
        )
        for step in steps:
            found, reason = None, ""
            try:
                found = self._restore_step(step, targets)
            except UserError:
                raise
            except Exception as error:
                # Orbax raises many types for damaged files; none may end a run that
                # an older step can continue.
                reason = (str(error).splitlines() or [type(error).__name__])[0]
            # What one process cannot read, none may go on from.
            reasons = gather_text(reason)
            if found is not None and not any(reasons):
                return step, *found
            self._set_aside(step, next(filter(None, reasons)))
        if steps:
            raise UserError(
                f"{self.directory}: none of the steps {steps} can be used (see above)"
            )
        return None

    def _restore_step(self, step: int, targets: Trees) -> tuple[Trees, dict[str, Any]]:
        self._check_same_trees(step, targets)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **items, data=ocp.args.JsonRestore(), digests=ocp.args.JsonRestore()
            ),
        )
        for name in targets:
            wrong = _first_difference(restored.digests[name], _digests(restored[name]))
            if wrong:
                raise OSError(
                    f"{name}{wrong} has another sha256 than when it was saved"
                )
        if restored.digests["data"] != {"": _json_digest(restored.data)}:
            raise OSError("the data position has another sha256 than when it was saved")
        return {name: restored[name] for name in targets}, dict(restored.data)

    def _check_same_trees(self, step: int, targets: Trees) -> None:
        """Another model's checkpoint is the user's error, not damage."""
        metadata = self._manager.item_metadata(step)
        for name, target in targets.items():
            if metadata[name] is None:
                raise OSError(f"item {name} is missing")
            stored, expected = _shapes(metadata[name].tree), _shapes(target)
            wrong = _first_difference(stored, expected)
            if wrong:
                raise UserError(
                    f"{self.directory / str(step)}: {name}{wrong} is "
                    f"{stored.get(wrong, 'missing')}, expected "
                    f"{expected.get(wrong, 'nothing')}: the checkpoint is of another "
                    "model or optimizer"
                )

    def _set_aside(self, step: int, reason: str) -> None:
        broken = self.directory.parent / "broken"
        what = "skipped" if self._read_only else f"moved to {broken}"
        say(f"checkpoint {step} cannot be used ({reason}); {what}")
        if self._read_only:
            return
        if is_main_process():
            broken.mkdir(exist_ok=True)
            number = sum(1 for _ in broken.iterdir())
            (self.directory / str(step)).rename(broken / f"{step}-{number}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()


def _digests(tree: Any) -> dict[str, str]:
    """sha256 of every leaf's bytes; of whole arrays, so independent of the mesh."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_key(path): _digest(_key(path), leaf) for path, leaf in leaves}


def _json_digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _digest(key: str, leaf: jax.Array) -> str:
    array = np.ascontiguousarray(to_host(leaf))
    if not np.isfinite(array).all():
        raise FloatingPointError(f"{key} holds values that are not finite")
    return hashlib.sha256(array.tobytes()).hexdigest()


def _shapes(tree: Any) -> dict[str, str]:
    """Key to dtype and shape, of arrays, shapes or Orbax's metadata alike."""
    return {
        _key(path): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _key(path: tuple[Any, ...]) -> str:
    """A path in which the kinds of node do not show: metadata has only dicts."""
    names = (
        getattr(node, "key", getattr(node, "name", getattr(node, "idx", node)))
        for node in path
    )
    return "".join(f"/{name}" for name in names)


def _first_difference(a: Mapping[str, str], b: Mapping[str, str]) -> str | None:
    keys = sorted(a.keys() | b.keys())
    return next((key for key in keys if a.get(key) != b.get(key)), None)
