"""Ways to damage files: what disks do to them, and hands.

All are told which step is damaged and may look at another one, for what is swapped.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Damage = Callable[[np.random.Generator, Path, Path], str]
"""Damages something in a step's folder; the other folder is that of another step.
Says what it did, with a path relative to the step."""


def files_of(step: Path) -> list[Path]:
    """All files of a step, sorted."""
    return sorted(path for path in step.rglob("*") if path.is_file())


def same_files(step: Path, other: Path) -> bool:
    """Whether two folders hold the same names and bytes."""
    names = [
        [path.relative_to(root) for path in files_of(root)] for root in (step, other)
    ]
    return names[0] == names[1] and all(
        (step / name).read_bytes() == (other / name).read_bytes() for name in names[0]
    )


def pick(rng: np.random.Generator, step: Path, content: bool = True) -> Path:
    """A file: in half of all cases that of a random byte, as disks choose.

    Else first an item, then a file of it, so that no small one is met too rarely. With
    `content`, one that is not empty.
    """
    files = [path for path in files_of(step) if path.stat().st_size or not content]
    if rng.integers(2):
        sizes = np.array([path.stat().st_size for path in files], float)
        return files[rng.choice(len(files), p=sizes / sizes.sum())]
    items = sorted({path.relative_to(step).parts[0] for path in files})
    item = items[rng.integers(len(items))]
    inside = [path for path in files if path.relative_to(step).parts[0] == item]
    return inside[rng.integers(len(inside))]


def flip_bit(rng: np.random.Generator, step: Path, other: Path) -> str:
    """One bit of one file."""
    path = pick(rng, step)
    content = bytearray(path.read_bytes())
    position, bit = int(rng.integers(len(content))), int(rng.integers(8))
    content[position] ^= 1 << bit
    path.write_bytes(content)
    return f"{path.relative_to(step)}: bit {bit} of byte {position} of {len(content)}"


def truncate(rng: np.random.Generator, step: Path, other: Path) -> str:
    """A file that ends early, or is empty."""
    path = pick(rng, step)
    content = path.read_bytes()
    kept = int(rng.integers(len(content)))
    path.write_bytes(content[:kept])
    return f"{path.relative_to(step)}: {kept} of {len(content)} bytes left"


def delete(rng: np.random.Generator, step: Path, other: Path) -> str:
    """A file that is gone."""
    path = pick(rng, step, content=False)
    path.unlink()
    return f"{path.relative_to(step)}"


def zero_fill(rng: np.random.Generator, step: Path, other: Path) -> str:
    """A part of a file that reads as zeros, as after a lost write."""
    path = pick(rng, step)
    content = bytearray(path.read_bytes())
    begin = int(rng.integers(len(content)))
    end = int(rng.integers(begin, len(content))) + 1
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)
    return f"{path.relative_to(step)}: bytes {begin} to {end} of {len(content)}"


def append(rng: np.random.Generator, step: Path, other: Path) -> str:
    """A file with more at its end than was written."""
    path = pick(rng, step)
    path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 64))))
    return f"{path.relative_to(step)}"


def swap_file(rng: np.random.Generator, step: Path, other: Path) -> str:
    """A file that holds what the same one of another step does.

    Files of array data have random names: one of the same folder stands for it.
    """
    path = pick(rng, step)
    twin = other / path.relative_to(step)
    if not twin.exists():
        twins = sorted(item for item in twin.parent.iterdir() if item.is_file())
        twin = twins[rng.integers(len(twins))]
    path.write_bytes(twin.read_bytes())
    return f"{path.relative_to(step)}: from {twin.relative_to(other.parent)}"


def swap_item(rng: np.random.Generator, step: Path, other: Path) -> str:
    """A whole item, such as `params`, that is another step's."""
    items = sorted(path for path in step.iterdir() if path.is_dir())
    path = items[rng.integers(len(items))]
    shutil.rmtree(path)
    shutil.copytree(other / path.name, path)
    return f"{path.name}: from {other.name}"


def swap_step(rng: np.random.Generator, step: Path, other: Path) -> str:
    """A whole step that is another one under this one's number."""
    shutil.rmtree(step)
    shutil.copytree(other, step)
    return f"all: from {other.name}"


def lose_item(rng: np.random.Generator, step: Path, other: Path) -> str:
    """A whole item that is gone, or empty."""
    items = sorted(path for path in step.iterdir() if path.is_dir())
    path = items[rng.integers(len(items))]
    shutil.rmtree(path)
    if rng.integers(2):
        path.mkdir()
        return f"{path.name}: empty"
    return f"{path.name}"


WAYS: Mapping[str, tuple[Damage, float]] = {
    "bit flip": (flip_bit, 8),
    "truncated": (truncate, 4),
    "deleted": (delete, 4),
    "zero-filled": (zero_fill, 4),
    "appended": (append, 1),
    "file of another step": (swap_file, 3),
    "item of another step": (swap_item, 2),
    "another step": (swap_step, 0.5),
    "item gone": (lose_item, 1),
}
"""Name to the damage and how often it is chosen among the others."""
