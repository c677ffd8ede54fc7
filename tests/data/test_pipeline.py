"""Order, shards, position, prefetch and errors of the batches."""

import dataclasses
import itertools
import json
import threading
import time
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from multistep_cm.data.pipeline import (
    Batches,
    DataIterator,
    device_put_batch,
    process_shard,
)
from multistep_cm.data.sources import ArraySource, Batch
from multistep_cm.errors import UserError


def numbered(num_examples: int, name: str = "numbers") -> ArraySource:
    """Examples whose label is their index, and whose left half is bright."""
    images = np.zeros((num_examples, 2, 2, 1), np.uint8)
    images[:, :, 0] = 255
    return ArraySource(name, "train", images, np.arange(num_examples, dtype=np.int32))


def labels(batches: Batches, steps: range) -> np.ndarray:
    return np.concatenate([batches.host_batch(step)["label"] for step in steps])


def assert_equal(found: Batch, expected: Batch) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 60, 97])
def test_each_epoch_is_a_permutation(batch_size: int) -> None:
    batches = Batches(numbered(60), batch_size, seed=3)
    seen = labels(batches, range(-(-240 // batch_size)))[:240].reshape(4, 60)
    np.testing.assert_array_equal(np.sort(seen, 1), np.tile(np.arange(60), (4, 1)))


def test_epochs_and_seeds_differ() -> None:
    orders = [labels(Batches(numbered(60), 60, s), range(3)) for s in range(5)]
    epochs = np.concatenate(orders).reshape(-1, 60)
    # Independent permutations of 60 agree in 1 place on average.
    for first, second in itertools.combinations([*epochs, np.arange(60)], 2):
        assert (first == second).sum() < 12


def test_positions_are_drawn_uniformly() -> None:
    batches = Batches(numbered(10), 10, seed=0)
    epochs = labels(batches, range(4000)).reshape(4000, 10)
    counts = np.stack([np.bincount(column, minlength=10) for column in epochs.T])
    chi_squared = ((counts - 400) ** 2 / 400).sum()
    assert chi_squared < 81 + 6 * np.sqrt(2 * 81)  # 81 degrees of freedom


def test_an_epoch_is_drawn_from_seed_and_number_alone() -> None:
    batches = Batches(numbered(60), 20, seed=1)
    late = batches.host_batch(1000)
    labels(batches, range(60))
    assert_equal(batches.host_batch(1000), late)
    assert_equal(Batches(numbered(60), 20, seed=1).host_batch(1000), late)


@pytest.mark.parametrize("steps_per_call", [1, 3])
@pytest.mark.parametrize("num_shards", [2, 4])
def test_shards_make_the_same_global_batch(
    num_shards: int, steps_per_call: int
) -> None:
    def batches(shard: int, num_shards: int) -> Batches:
        return Batches(
            numbered(50),
            12,
            5,
            True,
            steps_per_call,
            shard=shard,
            num_shards=num_shards,
        )

    for step in (0, 3, 300):
        parts = [batches(s, num_shards).host_batch(step) for s in range(num_shards)]
        axis = int(steps_per_call > 1)
        whole = {k: np.concatenate([p[k] for p in parts], axis) for k in parts[0]}
        assert_equal(whole, batches(0, 1).host_batch(step))


def test_a_call_stacks_its_steps() -> None:
    source = numbered(50)
    single = Batches(source, 8, 5, flip=True)
    stacked = Batches(source, 8, 5, flip=True, steps_per_call=4).host_batch(8)
    assert stacked["image"].shape == (4, 8, 2, 2, 1)
    assert stacked["label"].shape == (4, 8)
    for row in range(4):
        part = {key: value[row] for key, value in stacked.items()}
        assert_equal(part, single.host_batch(8 + row))


def test_half_of_the_images_are_flipped_anew_each_epoch() -> None:
    batches = Batches(numbered(1000), 1000, seed=0, flip=True)
    flipped = np.empty((4, 1000), bool)
    for epoch in range(4):
        batch = batches.host_batch(epoch)
        assert set(np.unique(batch["image"].sum((1, 2, 3)))) == {510}
        flipped[epoch, batch["label"]] = batch["image"][:, 0, 1, 0] == 255
    # Five standard deviations of a fair coin.
    assert np.abs(flipped.mean(1) - 0.5).max() < 5 * 0.5 / np.sqrt(1000)
    for first, second in itertools.combinations(flipped, 2):
        assert abs((first == second).mean() - 0.5) < 5 * 0.5 / np.sqrt(1000)


def test_flipping_does_not_change_the_order_or_the_source() -> None:
    source = numbered(100)
    before = source.images.copy()
    plain, flipping = Batches(source, 100, 0), Batches(source, 100, 0, flip=True)
    for step in range(2):
        found = flipping.host_batch(step)["label"]
        np.testing.assert_array_equal(found, plain.host_batch(step)["label"])
    assert (plain.host_batch(0)["image"] == before).all()
    np.testing.assert_array_equal(source.images, before)


@pytest.mark.parametrize(("num_threads", "prefetch"), [(1, 1), (2, 2), (4, 2), (2, 9)])
@pytest.mark.parametrize("steps_per_call", [1, 2])
def test_prefetched_is_synchronous(
    num_threads: int, prefetch: int, steps_per_call: int
) -> None:
    batches = Batches(numbered(50), 8, 1, True, steps_per_call)
    data = DataIterator(batches, None, num_threads, prefetch)
    for call, batch in zip(range(20), data, strict=False):
        assert_equal(batch, batches.host_batch(call * steps_per_call))
    data.close()


@pytest.mark.parametrize("num_shards", [1, 2])
def test_restored_at_any_step_it_goes_on_exactly(num_shards: int) -> None:
    first = DataIterator(Batches(numbered(50), 8, 1, True), prefetch=4)
    batches = [next(first) for _ in range(7)]
    state = json.loads(json.dumps(first.state()))
    assert state["position"] == 7
    expected = [next(first) for _ in range(5)]
    second = [
        DataIterator(Batches(numbered(50), 8, 1, True, 1, shard, num_shards))
        for shard in range(num_shards)
    ]
    for data in second:
        data.restore(state)
        assert data.state() == state
    for batch in expected:
        parts = [next(data) for data in second]
        whole = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        assert_equal(whole, batch)
    first.restore({**state, "position": 0})
    for batch in batches:
        assert_equal(next(first), batch)
    for data in (first, *second):
        data.close()


def test_the_position_counts_steps_not_calls() -> None:
    data = DataIterator(Batches(numbered(50), 8, 1, steps_per_call=5))
    assert data.state()["position"] == 0
    next(data)
    next(data)
    assert data.state()["position"] == 10
    data.close()


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        (Batches(numbered(50), 8, 2), "seed was 1 and is 2"),
        (Batches(numbered(51), 8, 1), "num_examples was 50 and is 51"),
        (Batches(numbered(50, "others"), 8, 1), "dataset was 'numbers' .*'others'"),
        (Batches(numbered(50), 4, 1), "batch_size was 8 and is 4"),
        (
            Batches(dataclasses.replace(numbered(50), split="test"), 8, 1),
            "split was 'train' and is 'test'",
        ),
    ],
)
def test_a_state_of_other_data_is_refused(batches: Batches, expected: str) -> None:
    state = DataIterator(Batches(numbered(50), 8, 1)).state()
    with pytest.raises(UserError, match=expected):
        DataIterator(batches).restore(state)


@pytest.mark.parametrize("position", [None, -1, 1.5, "3"])
def test_a_damaged_position_is_refused(position: Any) -> None:
    data = DataIterator(Batches(numbered(50), 8, 1))
    with pytest.raises(UserError, match="position"):
        data.restore({**data.state(), "position": position})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"num_shards": 3}, "batch_size is 8.* 3 "),
        ({"source": numbered(0)}, "no examples"),
    ],
)
def test_what_makes_no_batches(values: dict[str, Any], expected: str) -> None:
    arguments = {"source": numbered(5), "batch_size": 8, "seed": 0, **values}
    with pytest.raises(UserError, match=expected):
        Batches(**arguments)


def test_one_example_is_enough() -> None:
    assert (labels(Batches(numbered(1), 4, 0), range(3)) == 0).all()


@dataclasses.dataclass(frozen=True)
class Failing(ArraySource):
    """A source of which one example cannot be read while `broken` is set."""

    broken: threading.Event = dataclasses.field(default_factory=threading.Event)

    def read(self, indices: np.ndarray) -> Batch:
        if self.broken.is_set() and 33 in indices:
            raise UserError("example 33 cannot be read")
        return super().read(indices)


def test_an_error_surfaces_at_its_batch_and_the_batch_can_be_tried_again() -> None:
    good = numbered(50)
    source = Failing("numbers", "train", good.images, good.labels)
    source.broken.set()
    batches = Batches(good, 5, 0)
    failing_step = next(s for s in range(10) if 33 in batches.host_batch(s)["label"])
    data = DataIterator(Batches(source, 5, 0))
    for step in range(failing_step):
        assert_equal(next(data), batches.host_batch(step))
    for _ in range(2):
        with pytest.raises(UserError, match="example 33"):
            next(data)
        assert data.state()["position"] == failing_step
    source.broken.clear()
    for step in range(failing_step, failing_step + 8):
        assert_equal(next(data), batches.host_batch(step))
    data.close()


def test_an_error_of_put_surfaces() -> None:
    def put(batch: Batch) -> None:
        raise RuntimeError("no device")

    data = DataIterator(Batches(numbered(50), 8, 1), put)
    with pytest.raises(RuntimeError, match="no device"):
        next(data)
    data.close()


def test_close_stops_the_threads() -> None:
    before = set(threading.enumerate())
    data = DataIterator(Batches(numbered(50), 8, 1), num_threads=3, prefetch=5)
    next(data)
    assert set(threading.enumerate()) - before
    data.close()
    data.close()
    deadline = time.monotonic() + 30
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before
    with pytest.raises(ValueError, match="closed"):
        next(data)


def test_close_does_not_wait_for_a_slow_batch() -> None:
    release = threading.Event()

    def put(batch: Batch) -> Batch:
        if called.is_set():
            release.wait(60)
        called.set()
        return batch

    called = threading.Event()
    data = DataIterator(Batches(numbered(50), 8, 1), put, num_threads=1)
    next(data)
    begin = time.monotonic()
    data.close()
    assert time.monotonic() - begin < 30
    release.set()


@pytest.mark.parametrize("steps_per_call", [1, 2])
def test_batches_reach_the_devices(steps_per_call: int) -> None:
    mesh = jax.make_mesh((4, 2), ("data", "tensor"))
    axes = (None,) if steps_per_call > 1 else ()
    sharding = NamedSharding(mesh, PartitionSpec(*axes, "data"))
    batches = Batches(numbered(50), 8, 1, steps_per_call=steps_per_call)
    data = DataIterator(batches, device_put_batch(sharding))
    batch = next(data)
    assert batch["image"].sharding.is_equivalent_to(sharding, batch["image"].ndim)
    assert batch["label"].addressable_shards[0].data.shape[-1] == 2
    assert_equal(jax.device_get(batch), batches.host_batch(0))
    data.close()


def test_one_process_holds_the_whole_batch() -> None:
    mesh = jax.make_mesh((4, 2), ("data", "tensor"))
    for axes, shape in (((), (8,)), ((None,), (3, 8))):
        sharding = NamedSharding(mesh, PartitionSpec(*axes, "data"))
        assert process_shard(sharding, shape) == (0, 1)


class Held:
    """Stands for a sharding of which this process addresses some devices."""

    def __init__(self, *ranges: tuple[int, int]) -> None:
        self.ranges = ranges

    def addressable_devices_indices_map(
        self, shape: tuple[int, ...]
    ) -> dict[int, tuple[slice, ...]]:
        lead = (slice(None),) * (len(shape) - 1)
        return {i: (*lead, slice(*r)) for i, r in enumerate(self.ranges)}


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        (((0, 4), (4, 8)), (0, 2)),
        (((8, 12), (12, 16)), (1, 2)),
        (((12, 16), (12, 16)), (3, 4)),  # two devices along a tensor axis
        (((0, 16),), (0, 1)),
    ],
)
def test_the_shard_of_a_process(ranges: Any, expected: tuple[int, int]) -> None:
    assert process_shard(Held(*ranges), (2, 16)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("ranges", [((0, 4), (8, 12)), ((2, 6),)])
def test_scattered_devices_are_refused(ranges: Any) -> None:
    with pytest.raises(ValueError, match="neighbours"):
        process_shard(Held(*ranges), (16,))  # type: ignore[arg-type]
