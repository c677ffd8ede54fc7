"""The one checkpoint manager: state, data position and config in one Orbax save.

Each tree is an item of its own, so that a sampler reads only the averaged weights.
Beside them stand the config, the data position and `digests`, the sha256 of all that:
Orbax notices missing files but no flipped bit, so every restore verifies the digests.
A step that cannot be used is reported and moved to `broken/`; the next older serves.

Each process reads, holds and verifies what its own devices need. What one finds wrong
is said to all before any goes on, so that none waits for another that has failed.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from multistep_cm import digests
from multistep_cm.errors import UserError
from multistep_cm.sharding.agreement import (
    check_same,
    gather_text,
    main_first,
    together,
    wait_for_all,
)
from multistep_cm.sharding.distributed import is_main_process, say
from multistep_cm.sharding.rules import place_abstract

T = TypeVar("T")

TREE_ITEMS = ("params", "ema", "target", "optimizer")
MORE_AVERAGES = "ema_"
"""How the names of further trees begin: averages of other decays."""

LEAVES_IN_FLIGHT = 4
"""How many whole leaves a process may have on its host while it reads."""

Trees = dict[str, Any]
"""A name of `TREE_ITEMS`, or of a further average, to a pytree of arrays, or of shapes
to restore into."""


class SaveError(UserError):
    """A checkpoint could not be written."""


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which leaves the question of a stop to the train loop.

    It would ask JAX's preemption service, which is off (`sharding/stopping.py`).
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def _without_stack(record: logging.LogRecord) -> bool:
    """Take the pages of stack from a line that Orbax logs; it is always logged."""
    if "orbax" in record.pathname or record.name == "asyncio":
        record.exc_info = record.exc_text = None
    return True


class Checkpoints:
    """The checkpoints of one workdir; leaving the context waits for the last save."""

    def __init__(self, workdir: Path, keep: int | None = None) -> None:
        """Open `workdir/checkpoints`: to read, or to write and `keep` the newest."""
        self.directory = workdir.resolve() / "checkpoints"
        self._read_only = keep is None
        self._unchecked: int | None = None  # the step of the last save
        # Orbax logs what it raises, once in every thread that it passes.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_without_stack)
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=not self._read_only,
                cleanup_tmp_directories=not self._read_only,
            ),
            # Each item gets the handler of its arguments, whatever its name.
            handler_registry=ocp.handlers.DefaultCheckpointHandlerRegistry(),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            with self._told(self._unchecked):
                self._manager.close()
        except SaveError:
            # Of two troubles the first is told, unless it is known to be smaller.
            smaller = kind is not None and issubclass(kind, UserError)
            if kind is None or (smaller and not issubclass(kind, SaveError)):
                raise

    def latest_step(self) -> int | None:
        """The newest step that is listed, verified or not; None when there is none."""
        return self._manager.latest_step()

    def tree_sha256(self, step: int, name: str) -> str | None:
        """One sha256 for a tree of a step; None where it cannot be read.

        It is that of the digests of its pieces, which were made when it was saved, so
        it costs no reading of arrays. Equal trees that were saved in other pieces, on
        another mesh, have another one.
        """
        folder = self.directory / str(step) / "digests"
        recorded, _ = _or_reason(lambda: digests.DigestHandler().restore(folder)[name])
        return None if recorded is None else digests.json_digest(recorded)

    def save(
        self,
        step: int,
        trees: Trees,
        data_state: Mapping[str, Any],
        config: Mapping[str, Any],
    ) -> None:
        """Copy the trees off the devices and write them in the background.

        The caller may donate the arrays as soon as this returns. Raises
        FloatingPointError for a leaf that is not finite, and SaveError when this save
        cannot begin or an earlier one has failed. A step that is already saved is left
        alone.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        wait_for_all("save")
        bad = digests.first_not_finite(trees)
        if bad is not None:
            raise FloatingPointError(f"{bad} holds values that are not finite")
        others = {
            "data": digests.json_digest(data_state),
            "config": digests.json_digest(config),
            "step": digests.json_digest({"step": step}),
            **{
                _shapes_name(name): _shapes_digest(tree) for name, tree in trees.items()
            },
        }
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        with self._told(step):
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    **items,
                    data=ocp.args.JsonSave(dict(data_state)),
                    config=ocp.args.JsonSave(dict(config)),
                    digests=digests.DigestSave(trees, others),
                ),
            )
        self._unchecked = step
        if not saved:
            raise RuntimeError(
                f"Orbax did not save step {step} in {self.directory}; steps there: "
                f"{self._manager.all_steps()}"
            )

    def wait(self) -> None:
        """Return when the last save is on disk; SaveError when it failed."""
        step, self._unchecked = self._unchecked, None
        with self._told(step):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def check(self) -> None:
        """Raise SaveError when the last save has failed; waits for nothing."""
        if self._unchecked is None or self._manager.is_saving_in_progress():
            return
        self.wait()

    @contextlib.contextmanager
    def _told(self, step: int | None) -> Iterator[None]:
        """What Orbax raises while it saves, in one sentence."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            good = [int(p.name) for p in self.directory.glob("*") if p.name.isdecimal()]
            raise SaveError(
                f"checkpoint {step} cannot be written to {self.directory} "
                f"({_first_cause(error)}); the last complete one there is "
                f"{f'of step {max(good)}' if good else 'none'}: mend the disk, and the "
                "same command goes on from it"
            ) from error

    def restore(self, targets: Trees) -> tuple[int, Trees, dict[str, Any]] | None:
        """The newest good step: its number, the trees asked for, the data position.

        `targets` hold `jax.ShapeDtypeStruct` with shardings, of any mesh; restored
        arrays come in those shapes, dtypes and shardings. None when there is no
        checkpoint. Raises UserError when there are steps but none is good, and when a
        tree is of another model (naming the leaf).
        """
        steps = self._steps()
        for step in steps:
            found, reason = self._try(step, targets)
            if found is not None:
                return step, found.trees, found.data
            self._set_aside(step, reason)
        if steps:
            raise UserError(
                f"{self.directory}: none of the steps {steps} can be used (see above)"
            )
        return None

    def verify(self, mesh: Mesh) -> Iterator[tuple[int, str]]:
        """Each step, the newest first, and what is wrong with it; "" when nothing is.

        One tree is read at a time, spread over the mesh.
        """
        for step in self._steps():
            yield step, self._verify_step(step, mesh)

    def _verify_step(self, step: int, mesh: Mesh) -> str:
        folder = self.directory / str(step)

        def stored_trees() -> Trees:
            recorded = digests.DigestHandler().restore(folder / "digests")
            read = ocp.StandardCheckpointHandler().metadata
            present = {*recorded, *(path.name for path in folder.iterdir())}
            more = sorted(name for name in present if name.startswith(MORE_AVERAGES))
            return {
                name: place_abstract(read(folder / name).tree, mesh)
                for name in (*TREE_ITEMS, *more)
                if name in present
            }

        trees, reason = _or_reason(stored_trees)
        reasons = [*filter(None, gather_text(reason))]
        if trees is None or reasons:
            return reasons[0]
        if not trees:
            return "it holds no arrays"
        for name, tree in trees.items():
            found, reason = self._try(step, {name: tree})
            del found
            if reason:
                return reason
        return ""

    def _steps(self) -> list[int]:
        """All that are listed, the newest first; UserError when processes differ."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        check_same(
            {"the list of steps in checkpoints/": steps},
            "several processes need one folder that all of them share",
        )
        return steps

    def _try(self, step: int, targets: Trees) -> tuple["_Step | None", str]:
        """The step, or what is wrong with it: the same in every process."""

        found, reason = together(lambda: _or_reason(lambda: self._read(step, targets)))
        # What one process cannot read, none may go on from.
        reasons = [*filter(None, gather_text(reason))]
        if found is not None and not reasons:
            check_same(
                {f"the digests of step {step}": digests.json_digest(found.digests)},
                "several processes need one folder that all of them share",
            )
            damage, reason = _or_reason(found.find_damage)
            reasons = [*filter(None, gather_text(damage or reason))]
        return (None, reasons[0]) if reasons else (found, "")

    def _read(self, step: int, targets: Trees) -> "_Step":
        """What this process's devices need of a step, not yet verified.

        Not by the manager: it would wait for processes that cannot read theirs.
        """
        folder = self.directory / str(step)
        # Reading onto smaller parts than were written takes whole ones of these at a
        # time. A few leaves are enough to keep the disk busy.
        largest = max(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(targets)
        )
        arrays = ocp.StandardCheckpointHandler(
            restore_concurrent_gb=1 + LEAVES_IN_FLIGHT * largest // 10**9
        )
        values = ocp.JsonCheckpointHandler()
        recorded = digests.DigestHandler().restore(folder / "digests")
        for name, target in targets.items():
            stored = arrays.metadata(folder / name).tree
            # Damage must not pass for another model, which is the user's error.
            shapes = recorded.get(_shapes_name(name))
            if shapes is not None and shapes != {"": _shapes_digest(stored)}:
                raise ValueError(f"{name} has not the leaves that were saved")
            _check_same_tree(folder / name, stored, target)
        return _Step(
            step=step,
            trees={
                name: arrays.restore(folder / name, args=ocp.args.StandardRestore(tree))
                for name, tree in targets.items()
            },
            data=values.restore(folder / "data"),
            config=values.restore(folder / "config"),
            digests=recorded,
        )

    def _set_aside(self, step: int, reason: str) -> None:
        broken = self.directory.parent / "broken"
        what = "skipped" if self._read_only else f"moved to {broken}"
        say(f"checkpoint {step} cannot be used ({reason}); {what}")
        if self._read_only:
            return

        def move() -> None:
            if not is_main_process():
                return
            try:
                broken.mkdir(exist_ok=True)
                number = sum(1 for _ in broken.iterdir())
                (self.directory / str(step)).rename(broken / f"{step}-{number}")
            except OSError as error:
                raise UserError(f"{broken}: {error.strerror}") from error

        main_first(move)
        self._manager.reload()


@dataclasses.dataclass(frozen=True)
class _Step:
    """What was read of one step."""

    step: int
    trees: Trees
    data: dict[str, Any]
    config: dict[str, Any]
    digests: digests.Digests

    def find_damage(self) -> str | None:
        """A sentence about the first thing that is not as it was saved, if any.

        Every process must call it; they may differ in what they find.
        """
        found = {
            name: digests.find_damage(tree, self.digests.get(name, {}))
            for name, tree in self.trees.items()
        }
        values_by_name = {
            "data": self.data,
            "config": self.config,
            "step": {"step": self.step},
        }
        for name, values in values_by_name.items():
            recorded = self.digests.get(name)
            # The first checkpoints had digests of less.
            is_old = name != "data" and recorded is None
            if not is_old and recorded != {"": digests.json_digest(values)}:
                found[name] = ""
        return next(
            (
                f"{name}{leaf} has another sha256 than when it was saved"
                for name, leaf in found.items()
                if leaf is not None
            ),
            None,
        )


def _or_reason(read: Callable[[], T]) -> tuple[T | None, str]:
    """What `read` returns, or a line of why it cannot; the user's errors go on."""
    try:
        return read(), ""
    except UserError:
        raise
    except Exception as error:
        # Orbax raises many types for damaged files; none may end a run that an older
        # step can continue.
        return None, _first_cause(error)


def _first_cause(error: BaseException) -> str:
    """A line about what an error began with, which says most."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_same_tree(path: Path, stored_tree: Any, target: Any) -> None:
    """Another model's checkpoint is the user's error, not damage."""
    stored, expected = _shapes(stored_tree), _shapes(target)
    for key in sorted(stored.keys() | expected.keys()):
        if stored.get(key) != expected.get(key):
            raise UserError(
                f"{path.parent}: {path.name}{key} is {stored.get(key, 'missing')}, "
                f"expected {expected.get(key, 'nothing')}: the checkpoint is of "
                "another model or optimizer"
            )


def _shapes_name(name: str) -> str:
    """Under which the digests hold that of a tree's names, dtypes and shapes."""
    return f"shapes of {name}"


def _shapes_digest(tree: Any) -> str:
    return digests.json_digest(_shapes(tree))


def _shapes(tree: Any) -> dict[str, str]:
    """Name to dtype and shape, of arrays, shapes or Orbax's metadata alike."""
    return {
        key: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for key, leaf in digests.leaf_names(tree)
    }
