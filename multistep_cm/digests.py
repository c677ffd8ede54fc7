"""sha256 of arrays by pieces: made where a piece is held, checked on any mesh.

A piece is what one device holds of a leaf. No process needs bytes of another to make
digests, nor to check those of pieces that its own devices hold whole. Only a leaf with
a piece that lies across processes is gathered, one leaf at a time.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from multistep_cm.sharding.distributed import to_host

Box = tuple[tuple[int, int], ...]
"""Where a piece begins and ends on each axis."""

Pieces = dict[str, str]
"""The sha256 of each piece of a leaf: of "0:8,0:64", say, or of "", the whole leaf."""

Digests = dict[str, dict[str, str | Pieces]]
"""Those of a save: tree, leaf, then pieces, or one sha256 for a leaf in one piece."""

Regions = dict[Box, jax.Array | np.ndarray]
"""Parts of one leaf that this process holds."""

MOST_THREADS = 16
FILE_NAME = "metadata"


def leaf_names(tree: Any) -> Iterator[tuple[str, Any]]:
    """Each leaf after its name, such as "/layer/kernel".

    The kinds of node do not show in it, for Orbax's metadata has only dicts.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = (
            getattr(node, "key", getattr(node, "name", getattr(node, "idx", node)))
            for node in path
        )
        yield "".join(f"/{name}" for name in names), leaf


def json_digest(values: Mapping[str, Any]) -> str:
    """sha256 of what JSON keeps of these values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def first_not_finite(trees: Mapping[str, Any]) -> str | None:
    """The name of a leaf that holds a value that is not finite, if there is one.

    Computed where the arrays are; every process must call it, all get one answer.
    """
    named = [
        (f"{name}{key}", leaf)
        for name, tree in trees.items()
        for key, leaf in leaf_names(tree)
    ]
    finite = jax.device_get(_are_finite([leaf for _, leaf in named]))
    return next(
        (key for (key, _), good in zip(named, finite, strict=True) if not good), None
    )


@jax.jit
def _are_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


class DigestHandler(ocp.AsyncCheckpointHandler):
    """Makes and writes the digests of a save, in the background as Orbax the arrays.

    Each process writes a file; when all have, process 0 makes one of them.
    """

    async def async_save(self, directory: Path, args: "DigestSave") -> list[Any]:
        """Take copies on the host (Orbax uses the same ones), then return."""
        digests: dict[str, dict[str, Pieces]] = {}
        if jax.process_index() == 0:
            digests |= {name: {"": {"": sha}} for name, sha in args.others.items()}
        pieces = list(_own_pieces(args.trees))
        for *_, data in pieces:
            data.copy_to_host_async()
        copies = [
            (name, key, piece, np.asarray(data)) for name, key, piece, data in pieces
        ]

        async def write() -> None:
            # The train loop keeps a core for itself.
            with _threads(spared=1) as threads:
                shas = threads.map(_sha256, [data for *_, data in copies])
                for (name, key, piece, _), sha in zip(copies, shas, strict=True):
                    digests.setdefault(name, {}).setdefault(key, {})[piece] = sha
            path = _process_file(directory, jax.process_index())
            path.write_text(json.dumps(digests))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write())]

    def finalize(self, directory: Path) -> None:
        """Put the files of all processes together; Orbax asks process 0 alone."""
        merged: dict[str, dict[str, Pieces]] = {}
        paths = [_process_file(directory, n) for n in range(jax.process_count())]
        for path in paths:
            for name, tree in json.loads(path.read_text()).items():
                for key, pieces in tree.items():
                    merged.setdefault(name, {}).setdefault(key, {}).update(pieces)
        whole: Digests = {
            name: {key: pieces.get("", pieces) for key, pieces in tree.items()}
            for name, tree in merged.items()
        }
        (directory / FILE_NAME).write_text(json.dumps(whole, sort_keys=True))
        for path in paths:
            path.unlink()

    def save(self, directory: Path, *args: Any, **kwargs: Any) -> None:
        """Asked for by Orbax's interface; the manager saves in the background only."""
        raise NotImplementedError

    def restore(self, directory: Path, args: Any = None) -> Digests:
        """What `finalize` wrote."""
        found: Digests = json.loads((directory / FILE_NAME).read_text())
        return found


@ocp.args.register_with_handler(DigestHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class DigestSave(ocp.args.CheckpointArgs):
    """What to make digests of: trees of arrays; `others` have one already, by name."""

    trees: Mapping[str, Any]
    others: Mapping[str, str]


def _process_file(directory: Path, process: int) -> Path:
    return directory / f"process_{process}.json"


def _own_pieces(
    trees: Mapping[str, Any],
) -> Iterator[tuple[str, str, str, jax.Array]]:
    """Tree, leaf, piece and data of what this process makes digests of.

    Of several devices with the same piece one is responsible, in turn over the leaves.
    """
    for name, tree in trees.items():
        for number, (key, leaf) in enumerate(leaf_names(tree)):
            part = math.prod(leaf.sharding.shard_shape(leaf.shape))
            copies = leaf.sharding.num_devices * part // leaf.size
            for shard in leaf.addressable_shards:
                if shard.replica_id == number % copies:
                    piece = _box_name(_box(shard.index, leaf.shape), leaf.shape)
                    yield name, key, piece, shard.data


def find_damage(tree: Any, recorded: Mapping[str, str | Pieces]) -> str | None:
    """The name of a leaf whose bytes are not those that were recorded, if there is one.

    Every process must call it with the same record; each checks what its devices hold,
    so that the answers may differ.
    """
    results: dict[str, concurrent.futures.Future[bool]] = {}
    with _threads() as threads:
        for key, leaf in leaf_names(tree):
            pieces = _parse(recorded.get(key, {}), leaf.shape)
            boxes = np.array(list(pieces), int).reshape(len(pieces), leaf.ndim, 2)
            if _sizes(boxes).sum() != leaf.size:
                results[key] = threads.submit(lambda: False)
            elif _lies_across_processes(leaf, boxes):
                everything = _box((slice(None),) * leaf.ndim, leaf.shape)
                regions: Regions = {everything: to_host(leaf)}
                results[key] = threads.submit(_agree, regions, pieces)
                del regions
                concurrent.futures.wait([results[key]])
            else:  # copied to the host only when its turn comes
                regions = {
                    _box(shard.index, leaf.shape): shard.data
                    for shard in leaf.addressable_shards
                }
                results[key] = threads.submit(_agree, regions, pieces)
    return next((key for key, good in results.items() if not good.result()), None)


def _agree(regions: Regions, pieces: dict[Box, str]) -> bool:
    """Whether the pieces that these regions hold have the digests given."""
    held = {box: _host_copy(data) for box, data in regions.items()}
    for box, sha in pieces.items():
        piece = _cut_out(held, box)
        if piece is not None and _sha256(piece) != sha:
            return False
    return True


def _cut_out(regions: Mapping[Box, np.ndarray], box: Box) -> np.ndarray | None:
    """The values in a box, put together from regions; None when these are elsewhere."""
    piece: np.ndarray | None = None
    for where, data in regions.items():
        common = tuple(
            (max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, where, strict=True)
        )
        if any(low >= high for low, high in common):
            continue
        values = data[_slices(common, where)]
        if common == box:
            return values
        if piece is None:
            piece = np.empty([high - low for low, high in box], data.dtype)
        piece[_slices(common, box)] = values
    return piece


def _lies_across_processes(leaf: jax.Array, boxes: np.ndarray) -> bool:
    """Whether a process holds a part but not the whole of a box [pieces, axes, 2].

    Known to all processes alike without asking.
    """
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return False
    held: dict[int, set[Box]] = {}
    places: dict[Any, Any] = {**leaf.sharding.devices_indices_map(leaf.shape)}
    for device, index in places.items():
        held.setdefault(device.process_index, set()).add(_box(index, leaf.shape))
    for regions in held.values():
        there = np.array(list(regions), int).reshape(1, len(regions), leaf.ndim, 2)
        low = np.maximum(boxes[:, None, :, 0], there[..., 0])
        high = np.minimum(boxes[:, None, :, 1], there[..., 1])
        common = np.maximum(high - low, 0).prod(-1).sum(-1)
        if np.any((common > 0) & (common < _sizes(boxes))):
            return True
    return False


def _sizes(boxes: np.ndarray) -> np.ndarray:
    sizes: np.ndarray = (boxes[..., 1] - boxes[..., 0]).prod(-1)
    return sizes


def _host_copy(data: jax.Array | np.ndarray) -> np.ndarray:
    """On the host, and nowhere kept: JAX would keep it as long as the array itself."""
    if isinstance(data, np.ndarray):
        return data
    make = jax.make_array_from_single_device_arrays
    return np.asarray(make(data.shape, data.sharding, [data]))


def _sha256(array: np.ndarray) -> str:
    flat = np.ascontiguousarray(array).reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data).hexdigest()


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    return tuple(
        part.indices(size)[:2] for part, size in zip(index, shape, strict=True)
    )


def _slices(box: Box, origin: Box) -> tuple[slice, ...]:
    """The indices of a box in an array that begins where `origin` does."""
    return tuple(
        slice(low - start, high - start)
        for (low, high), (start, _) in zip(box, origin, strict=True)
    )


def _box_name(box: Box, shape: tuple[int, ...]) -> str:
    if box == tuple((0, size) for size in shape):
        return ""
    return ",".join(f"{low}:{high}" for low, high in box)


def _parse(record: str | Pieces, shape: tuple[int, ...]) -> dict[Box, str]:
    """Boxes and their digests."""
    pieces = {"": record} if isinstance(record, str) else record
    whole = tuple((0, size) for size in shape)
    return {
        tuple(_bounds(part) for part in name.split(",")) if name else whole: sha
        for name, sha in pieces.items()
    }


def _bounds(text: str) -> tuple[int, int]:
    low, high = text.split(":")
    return int(low), int(high)


def _threads(spared: int = 0) -> concurrent.futures.ThreadPoolExecutor:
    """For work that leaves Python's lock alone, as hashing does."""
    cores = max(1, (os.cpu_count() or 1) - spared)
    return concurrent.futures.ThreadPoolExecutor(min(MOST_THREADS, cores))
