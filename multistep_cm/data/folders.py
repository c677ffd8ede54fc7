"""Which images a folder holds: their order, classes and splits, from names alone.

The order is that of the relative paths as text, whatever order the file system lists
them in, so every process and every machine with the same files has the same examples.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from multistep_cm.errors import UserError
from multistep_cm.files import is_folder, path_problem, with_home

SUFFIXES = (
    *(".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif"),
    *(".tiff", ".webp"),
)
"""What image files are called, in lower case."""

HELD_OUT_NAMES = ("test", "validation", "val")
"""One of these in the config may be any of them on disk."""

HELD_OUT_PART = 10
"""One image of so many is held out where no sub-folder says which."""


@dataclass(frozen=True)
class Images:
    """Image files of one split.

    Attributes:
        root: where the paths start.
        paths: relative, with slashes, sorted as text.
        labels: int32 [N], the numbers of their classes; 0 without classes.
    """

    root: Path
    paths: Sequence[str]
    labels: np.ndarray

    def fingerprint(self) -> str:
        """A hash of the relative paths; contents are not looked at."""
        text = b"\0".join(map(os.fsencode, self.paths))
        return hashlib.sha256(text).hexdigest()[:16]


@dataclass(frozen=True)
class Folder:
    """A folder's images by the name of their split in the config.

    Attributes:
        splits: of `data.train_split` and of `data.evaluation_split`.
        classes: names of the class folders, in the order of their labels.
        ignored: what else is there.
    """

    directory: Path
    splits: Mapping[str, Images]
    classes: Sequence[str]
    ignored: Sequence[str]

    def describe(self) -> str:
        """A line that says what was found, for the user to compare."""
        counts = [f"{len(found.paths):,} {name}" for name, found in self.splits.items()]
        number = "no classes"
        if self.classes:
            number = f"{len(self.classes):,} classes ({_ends(self.classes)})"
        text = f"folder {self.directory}: {' and '.join(counts)} images, {number}"
        if self.ignored:
            text += (
                f"; ignored what is no image: {self.ignored[0]!r}"
                f" ({len(self.ignored):,} in all)"
            )
        return text


def find_images(config: ConfigDict) -> Folder:
    """The images of `data.directory`, in the splits of the config's `data` part.

    Where there are sub-folders of the splits' names, they are the splits. Elsewhere
    the evaluation split is a tenth of each class: the paths of the lowest hash. With
    `data.num_classes` each folder in there is a class, numbered in the order of their
    names as text; without, every image below counts.

    Raises UserError for a folder that does not exist, cannot be read or holds no
    images; for a split or class without images; and for another number of classes.
    """
    directory = existing_folder(config.directory)
    train, evaluation = config.train_split, config.evaluation_split
    roots = split_roots(directory, train, evaluation)
    root = roots.get(train, directory)
    classes = class_names(root) if config.num_classes else []
    if len(classes) != config.num_classes:
        remedy = f"{len(classes)}, or 0 for a model without classes" if classes else "0"
        raise UserError(
            f"config key data.num_classes is {config.num_classes}, but {root} holds "
            f"{len(classes)} class folders: set data.num_classes = {remedy}"
        )
    images, ignored = list_images(root, classes)
    _check_classes(images, classes)
    splits = {train: images}
    if evaluation in roots and evaluation != train:
        held_out, more = list_images(roots[evaluation], classes)
        splits[evaluation] = held_out
        used = {path.name for path in roots.values()}
        beside = (e.name for e, _ in _entries(directory) if e.name not in used)
        ignored = [*ignored, *more, *sorted(beside)]
    elif evaluation != train:
        splits = dict(zip((train, evaluation), hold_out(images), strict=True))
    for name, found in splits.items():
        if not found.paths:
            raise UserError(
                f"split {name!r} of folder {directory} would have none of its "
                f"{len(images.paths)} images: add images, or set "
                f"data.evaluation_split={train} to hold out none"
            )
    return Folder(directory, splits, classes, ignored)


def existing_folder(directory: str) -> Path:
    """The folder of `data.directory`; UserError where there is none."""
    path = with_home(directory)
    if not directory or not is_folder(path):
        exists = not path_problem(directory) and path.exists()
        what = "is no folder" if exists else "does not exist"
        raise UserError(
            f"config key data.directory is {directory!r:.200}, which {what}: expected "
            "a folder of images"
        )
    return path


def count_classes(directory: str, train_split: str = "train") -> int:
    """How many class folders `find_images` will find; reads two folders at most."""
    root = existing_folder(directory)
    if is_folder(root / train_split):
        root = root / train_split
    return len(class_names(root))


def split_roots(directory: Path, train: str, evaluation: str) -> dict[str, Path]:
    """The sub-folders that are the splits; empty where there are none of the names.

    Raises UserError when there is one of two: the rest would be guessed.
    """
    for key, name in (("train_split", train), ("evaluation_split", evaluation)):
        if not name or name != Path(name).name or "[" in name:
            raise UserError(
                f"config key data.{key} is {name!r}, expected the name of a sub-folder "
                f"of {directory}, or any word where there is none"
            )
    names = HELD_OUT_NAMES if evaluation in HELD_OUT_NAMES else ()
    found = [
        next((path for name in wanted if is_folder(path := directory / name)), None)
        for wanted in ([train], [evaluation, *names])
    ]
    roots = {
        split: path
        for split, path in zip((train, evaluation), found, strict=True)
        if path is not None
    }
    if found[0] is None and found[1] is not None:
        raise UserError(
            f"folder {directory} has a sub-folder {found[1].name!r} but none "
            f"{train!r}: move the images to train on into {directory / train}, or "
            f"rename {found[1].name!r} if it is a class"
        )
    if found[1] is None and found[0] is not None:
        raise UserError(
            f"folder {directory} has a sub-folder {train!r} but none {evaluation!r}: "
            f"name it in data.evaluation_split, set data.directory={found[0]} to hold "
            f"out a tenth of that, or rename {train!r} if it is a class"
        )
    return roots


def class_names(root: Path) -> list[str]:
    """The folders in `root`, sorted as text; hidden ones are none."""
    names = [entry.name for entry, is_dir in _entries(root) if is_dir]
    return sorted(name for name in names if not name.startswith("."))


def list_images(root: Path, classes: Sequence[str]) -> tuple[Images, list[str]]:
    """All images below, at any depth, and the other files (a hidden folder is one).

    Raises UserError for no images, for a link that leads back, and with classes for an
    image outside of their folders.
    """
    paths, others = [], []
    pending = [""]
    while pending:
        prefix = pending.pop()
        for entry, is_dir in _entries(root / prefix):
            path = prefix + entry.name
            if entry.name.startswith("."):
                others.append(path)
            elif is_dir:
                _check_link(entry)
                pending.append(f"{path}/")
            elif entry.name.lower().endswith(SUFFIXES):
                paths.append(path)
            else:
                others.append(path)
    paths.sort()
    others.sort()
    if not paths:
        held = f" ({len(others)} other files, such as {others[0]!r})" if others else ""
        raise UserError(
            f"folder {root} holds no images{held}: expected files named "
            f"{', '.join(f'*{suffix}' for suffix in SUFFIXES)}"
        )
    labels = np.zeros(len(paths), np.int32)
    if classes:
        numbers = {name: number for number, name in enumerate(classes)}
        for row, path in enumerate(paths):
            name, slash, _ = path.partition("/")
            if not slash or name not in numbers:
                raise UserError(
                    f"image {path!r} of folder {root} is in none of the "
                    f"{len(classes)} class folders ({_ends(classes)}): move it, or set "
                    "data.num_classes = 0 for a model without classes"
                )
            labels[row] = numbers[name]
    return Images(root, paths, labels), others


def hold_out(images: Images) -> tuple[Images, Images]:
    """What remains, and a tenth of each class: the paths of the lowest hash.

    At least one image of a class of two and more. A file that is added or removed
    changes little else.
    """
    digests = b"".join(
        hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
        for path in images.paths
    )
    labels = images.labels
    order = np.lexsort((np.frombuffer(digests, "<u8"), labels))
    sizes = np.bincount(labels)
    wanted = np.where(sizes < 2, 0, np.maximum(1, sizes // HELD_OUT_PART))
    ranks = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[labels[order]]
    is_held_out = np.empty(len(order), bool)
    is_held_out[order] = ranks < wanted[labels[order]]
    kept, held = (
        Images(
            images.root,
            [images.paths[row] for row in np.flatnonzero(which).tolist()],
            labels[which],
        )
        for which in (~is_held_out, is_held_out)
    )
    return kept, held


def _check_classes(images: Images, classes: Sequence[str]) -> None:
    """Raise UserError naming the first class without images."""
    sizes = np.bincount(images.labels, minlength=len(classes))
    for name, size in zip(classes, sizes.tolist(), strict=False):
        if not size:
            raise UserError(
                f"class folder {images.root / name} holds no images: remove the folder "
                "or add images"
            )


def _ends(names: Sequence[str]) -> str:
    """The first and the last."""
    return " .. ".join(map(repr, dict.fromkeys((names[0], names[-1]))))


def _check_link(entry: os.DirEntry[str]) -> None:
    """Raise UserError for a link to a folder above it: it would be listed for ever."""
    if entry.is_symlink():
        target, place = Path(entry.path).resolve(), Path(entry.path).parent.resolve()
        if place.is_relative_to(target):
            raise UserError(
                f"link {entry.path!r} leads to a folder above it: remove the link"
            )


def _entries(path: Path) -> Iterator[tuple[os.DirEntry[str], bool]]:
    """What a folder holds, as the file system lists it, and whether it is a folder."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                yield entry, entry.is_dir()
    except OSError as error:
        raise UserError(f"folder {path} cannot be read: {error.strerror}") from error
