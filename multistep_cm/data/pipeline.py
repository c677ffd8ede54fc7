"""Batches in an order that is a pure function of (seed, global step).

Epoch e of a run visits the examples in a permutation drawn from (seed, e), and the
global batch of step k is positions k * batch_size, .. of the epochs laid end to end.
Nothing is carried from batch to batch, so a position in the data is one number, any
number of processes reads the same global batches, and resuming needs no replay.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from multistep_cm.data import transforms
from multistep_cm.data.sources import Batch, Source
from multistep_cm.errors import UserError
from multistep_cm.sharding.agreement import check_same

Put = Callable[[Batch], Any]

# A call may span several epochs of a small dataset.
CACHED_EPOCHS = 4


class Batches:
    """The batches of one process as a function of the step; safe to call in threads.

    Args:
      source: the examples.
      batch_size: of the global batch; `num_shards` must divide it.
      seed: in [0, 2**32).
      flip: mirror each image with probability 1/2, anew in each epoch.
      steps_per_call: when above 1, batches of so many steps are stacked.
      shard, num_shards: which contiguous part of each global batch this process reads.

    Raises UserError for an empty source, a seed out of range or a batch that does not
    divide.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        flip: bool = False,
        steps_per_call: int = 1,
        shard: int = 0,
        num_shards: int = 1,
    ) -> None:
        if not 0 <= seed < 2**32:
            raise UserError(f"config key seed is {seed}, expected 0 <= seed < 2**32")
        if batch_size % num_shards:
            raise UserError(
                f"config key training.batch_size is {batch_size}, not divisible by "
                f"the {num_shards} parts that the processes read"
            )
        if not len(source):
            raise UserError(
                f"split {source.split!r} of dataset {source.name!r} has no examples"
            )
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        self.steps_per_call = steps_per_call
        self.shard = shard
        self.num_shards = num_shards
        epochs = epoch_orders(len(source), seed)
        self._epoch = functools.lru_cache(CACHED_EPOCHS)(epochs.__getitem__)

    def order(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is at these positions, int64 [N], of the epochs laid end to end.

        Returns indices of examples, int32 [N], and whether to flip them, bool [N].
        """
        epochs, offsets = np.divmod(positions, len(self.source))
        indices = np.empty(len(positions), np.int32)
        flips = np.empty(len(positions), bool)
        for epoch in np.unique(epochs).tolist():
            rows = epochs == epoch
            order = self._epoch(epoch)
            indices[rows] = order["index"][offsets[rows]]
            flips[rows] = order["flip"][offsets[rows]]
        return indices, flips

    def host_batch(self, step: int) -> Batch:
        """This process's part of the global batches from this step on.

        Returns `image` uint8 [B, S, S, C] and `label` int32 [B], where B is
        batch_size / num_shards; with `steps_per_call` K > 1 both have a leading axis K.
        Raises UserError naming the example that cannot be read.
        """
        part = self.batch_size // self.num_shards
        steps = np.arange(step, step + self.steps_per_call, dtype=np.int64)[:, None]
        positions = steps * self.batch_size + self.shard * part + np.arange(part)
        indices, flips = self.order(positions.ravel())
        batch = self.source.read(indices)
        if self.flip:
            batch["image"] = transforms.flip(batch["image"], flips)
        if self.steps_per_call == 1:
            return batch
        return {k: v.reshape(*positions.shape, *v.shape[1:]) for k, v in batch.items()}


def epoch_orders(num_examples: int, seed: int) -> grain.MapDataset:
    """Element e is the order of epoch e, drawn from (seed, e) alone.

    That is `index`, a permutation in int32 [num_examples], and `flip`, fair coins in
    bool [num_examples]. A whole epoch at once, because grain's own `shuffle` costs
    Python time for every single example.
    """

    def draw(_: int, rng: np.random.Generator) -> Batch:
        index = rng.permutation(num_examples).astype(np.int32)
        return {"index": index, "flip": rng.random(num_examples) < 0.5}

    return grain.MapDataset.range(1).seed(seed).repeat().random_map(draw)


class DataIterator:
    """Batches ready ahead of time, and the position of those that were taken.

    Every process of a run must make its own: they compare what they will read. Raises
    UserError, in every process, when that differs.

    Args:
      batches: what to iterate over.
      put: called with each batch in a background thread; it returns what `next` gives,
        for example the arrays on devices (`device_put_batch`).
      num_threads: how many batches are made at the same time.
      prefetch: how many batches are ready ahead; never fewer than `num_threads`.
    """

    def __init__(
        self,
        batches: Batches,
        put: Put | None = None,
        num_threads: int = 2,
        prefetch: int = 2,
    ) -> None:
        self.batches = batches
        self._put = put
        self._options = grain.ReadOptions(num_threads, max(prefetch, num_threads))
        self._position = 0
        self._iterator: grain.DatasetIterator | None = None
        self._closed = False
        check_same(
            {f"the data's {key}": value for key, value in self._identity().items()},
            "give all of them the same files",
        )

    def __iter__(self) -> "DataIterator":
        return self

    def __next__(self) -> Any:
        """The batches of the next `steps_per_call` steps; it never ends.

        Raises what making the batch raised, UserError for an example that cannot be
        read; the position stays, so the next call tries the same batch again.
        """
        if self._closed:
            raise ValueError("this DataIterator is closed")
        if self._iterator is None:
            self._iterator = self._start()
        done = False
        try:
            batch = next(self._iterator)
            done = True
        finally:
            # After an error grain goes on behind the batch that failed.
            if not done:
                self._stop()
        self._position += self.batches.steps_per_call
        return batch

    @property
    def num_bad(self) -> int:
        """Records that this process has met and passed over; see `bad_records.py`."""
        return self.batches.source.num_bad

    def state(self) -> dict[str, Any]:
        """The position and what it belongs to: small, in JSON, the same on every host.

        `position` is the next global step: what was only prefetched does not count.
        """
        return {"position": self._position, **self._identity()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position that `state` gave, on any number of processes.

        Raises UserError when it belongs to other data, another seed or batch size.
        """
        differing = [
            f"{key} was {state.get(key)!r} and is {value!r}"
            for key, value in self._identity().items()
            if state.get(key) != value
        ]
        if differing:
            raise UserError(
                f"the saved position in the data is of another run: "
                f"{', '.join(differing)}; restore what changed or start a new workdir"
            )
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise UserError(
                f"the saved position in the data is {position!r}, expected a step of "
                "at least 0: the checkpoint is damaged"
            )
        self._stop()
        self._position = position

    def close(self) -> None:
        """Stop the threads as soon as they have finished their present batch."""
        self._closed = True
        self._stop()

    def _identity(self) -> dict[str, Any]:
        batches, source = self.batches, self.batches.source
        identity = {
            "seed": batches.seed,
            "dataset": source.name,
            "split": source.split,
            "num_examples": len(source),
            "batch_size": batches.batch_size,
        }
        if source.fingerprint:
            identity["file_names"] = source.fingerprint
        return identity

    def _start(self) -> grain.DatasetIterator:
        per_call = self.batches.steps_per_call
        steps = grain.MapDataset.range(self._position, sys.maxsize, per_call)
        made = steps.map(self.batches.host_batch)
        if self._put is not None:
            made = made.map(self._put)
        return iter(made.to_iter_dataset(self._options))

    def _stop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


def device_put_batch(sharding: NamedSharding) -> Put:
    """A `put` that makes global arrays with this sharding from each process's part."""

    def put(batch: Batch) -> dict[str, jax.Array]:
        return {
            key: jax.make_array_from_process_local_data(sharding, value)
            for key, value in batch.items()
        }

    return put


def process_shard(sharding: NamedSharding, shape: tuple[int, ...]) -> tuple[int, int]:
    """Which part of an array's batch axis this process holds: (shard, num_shards).

    `shape` is global and its last axis is the batch. Processes that hold the same part
    (other devices along a tensor axis) get the same shard. Raises ValueError when the
    mesh gives this process something else than one of several equal contiguous parts.
    """
    held = sharding.addressable_devices_indices_map(shape).values()
    ranges = {index[-1].indices(shape[-1])[:2] for index in held if index is not None}
    start = min(first for first, _ in ranges)
    stop = max(last for _, last in ranges)
    part = stop - start
    covered = sum(last - first for first, last in ranges)
    if covered != part or shape[-1] % part or start % part:
        raise ValueError(
            f"this process holds rows {sorted(ranges)} of a batch of {shape[-1]}: the "
            "devices of a process must be neighbours in the mesh"
        )
    return start // part, shape[-1] // part
