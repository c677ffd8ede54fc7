"""Two processes of jax.distributed read one global batch."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest

from multistep_cm.data.pipeline import Batches
from multistep_cm.data.sources import ArraySource

PROGRAM = """
import json, sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from multistep_cm.data.pipeline import (
    Batches, DataIterator, device_put_batch, process_shard
)
from multistep_cm.data.sources import ArraySource

address, process, shape = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(address, 2, process)
mesh = jax.make_mesh(shape, ("data", "tensor"))
sharding = NamedSharding(mesh, PartitionSpec("data"))
source = ArraySource("n", "train", np.zeros((50, 2, 2, 1), np.uint8), np.arange(50))
shard, num_shards = process_shard(sharding, (8,))
batches = Batches(source, 8, 0, shard=shard, num_shards=num_shards)
data = DataIterator(batches, device_put_batch(sharding))
next(data)
label = next(data)["label"]
assert label.shape == (8,)
rows = {s.index[0].indices(8)[0]: s.data.tolist() for s in label.addressable_shards}
print("rows", json.dumps([shard, num_shards, rows]))
data.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "shards"), [((4, 1), [(0, 2), (1, 2)]), ((1, 4), [(0, 1), (0, 1)])]
)
def test_two_processes_hold_one_global_batch(
    shape: tuple[int, int], shards: list[tuple[int, int]]
) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(process), json.dumps(shape)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    source = ArraySource("n", "train", np.zeros((50, 2, 2, 1), np.uint8), np.arange(50))
    expected = Batches(source, 8, 0).host_batch(1)["label"].tolist()
    for run, shard in zip(runs, shards, strict=True):
        output, _ = run.communicate(timeout=180)
        line = next(line for line in output.splitlines() if line.startswith("rows "))
        *found, rows = json.loads(line.removeprefix("rows "))
        assert tuple(found) == shard
        for start, values in rows.items():
            assert expected[int(start) : int(start) + len(values)] == values
        assert len({*rows}) * len(next(iter(rows.values()))) == 8 // shard[1]


DIFFERING = """
import sys
import jax
import numpy as np
from multistep_cm.data.pipeline import Batches, DataIterator
from multistep_cm.data.sources import ArraySource
from multistep_cm.errors import UserError

address, process = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, 2, process)
images = np.zeros((50, 2, 2, 1), np.uint8)
for files in ("same", f"of {process}"):
    source = ArraySource("folder", "train", images, np.arange(50), files)
    try:
        DataIterator(Batches(source, 8, 0, shard=process, num_shards=2))
        print("said nothing")
    except UserError as error:
        print("said", error)
"""


@pytest.mark.slow
def test_two_processes_with_other_files_are_told_so() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", DIFFERING, address, str(process)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    for run in runs:
        output, _ = run.communicate(timeout=180)
        assert [line for line in output.splitlines() if line.startswith("said ")] == [
            "said nothing",
            "said the data's file_names is 'of 0' in process 0 and 'of 1' in process "
            "1: give all of them the same files",
        ]
