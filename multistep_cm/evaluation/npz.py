"""Sample files in the layout that the ADM evaluator reads.

`arr_0` holds the images, uint8 [count, height, width, channels]; `arr_1`, where there
is one, their class labels, integer [count].
"""

import lzma
import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from multistep_cm.errors import UserError
from multistep_cm.files import check_regular, written_aside

LARGEST_EXPANSION = 100
"""Bytes of arrays to a byte of file: compressed samples have about two."""

ALWAYS_ALLOWED = 2**28
"""Bytes of arrays that any file may hold, such as blank images."""

PIECE = 2**24
"""Bytes that are copied at a time."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def save_samples(
    path: str | Path, images: np.ndarray, labels: np.ndarray | None = None
) -> Path:
    """Writes images and labels to `path` and returns it.

    Args:
      path: a name that ends in .npz; missing folders are made.
      images: uint8 [count, height, width, channels].
      labels: integer [count], or None where there are no classes.

    Raises:
      ValueError: another dtype or shape.
    """
    images = np.asarray(images)
    problem = _problem(images, labels)
    if problem:
        raise ValueError(problem)
    arrays = {"arr_0": images}
    if labels is not None:
        arrays["arr_1"] = np.asarray(labels)
    return write_arrays(path, arrays)


def load_samples(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads what `save_samples` (or another tool of that layout) wrote.

    Returns:
      images uint8 [count, height, width, channels] and labels [count] or None.

    Raises:
      UserError: the file is missing, broken, or not of this layout.
    """
    try:
        arrays = read_arrays(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a samples .npz file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable .npz file: {error}") from error
    if "arr_0" not in arrays:
        raise UserError(
            f"{path} holds {sorted(arrays)}; expected the images under 'arr_0', "
            "as `multistep-cm sample` writes them"
        )
    labels = arrays.get("arr_1")
    problem = _problem(arrays["arr_0"], labels)
    if problem:
        raise UserError(f"{path}: {problem}")
    return arrays["arr_0"], labels


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Writes an .npz aside and renames it, so that a reader sees all or nothing.

    Raises UserError for another name, and when it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"{path} must end in .npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside, aside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return path


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; never runs code from it (no pickle).

    numpy's own reader allocates what an array's header says before it looks for the
    bytes; here the sizes in the file must agree with each other and with its length.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an .npz file, damaged, or it holds pickled objects.
    """
    check_regular(Path(path))
    with Path(path).open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                _check_expansion(archive, Path(path).stat().st_size)
                return {
                    entry.filename.removesuffix(".npy"): _read_array(archive, entry)
                    for entry in archive.infolist()
                }
        except zipfile.BadZipFile as error:
            file.seek(0)
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                raise ValueError("a single array, not an .npz archive") from error
            raise ValueError(str(error)) from error
        except (
            *(EOFError, RuntimeError, LookupError, TypeError, OverflowError),
            *(MemoryError, zlib.error, lzma.LZMAError),
            *(SyntaxError, tokenize.TokenError),
        ) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def _check_expansion(archive: zipfile.ZipFile, size: int) -> None:
    declared = sum(entry.file_size for entry in archive.infolist())
    if declared > max(LARGEST_EXPANSION * size, ALWAYS_ALLOWED):
        raise ValueError(
            f"its {size:,} bytes would become {declared:,}, expected at most "
            f"{LARGEST_EXPANSION} times as many"
        )


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """One array, copied once out of what is there and not into what is said to be."""
    with archive.open(entry) as file:
        shape, is_fortran, dtype = _read_header(file, entry.filename)
        if dtype.hasobject or not dtype.itemsize:
            raise ValueError(f"{entry.filename} holds pickled objects, not numbers")
        if min(shape, default=0) < 0:
            raise ValueError(f"{entry.filename} says that it has the shape {shape}")
        size = math.prod(shape) * dtype.itemsize
        rest = entry.file_size - file.tell()
        if size != rest:
            raise ValueError(
                f"{entry.filename} says that it is {dtype} {list(shape)}, {size:,} "
                f"bytes, but {rest:,} follow"
            )
        data, filled = bytearray(size), 0
        while piece := file.read(PIECE):  # the last one, empty, checks the CRC
            data[filled : filled + len(piece)] = piece
            filled += len(piece)
    if filled != size:
        raise ValueError(f"{entry.filename} has {filled:,} bytes, expected {size:,}")
    order: Literal["C", "F"] = "F" if is_fortran else "C"
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _read_header(
    file: IO[bytes], name: str
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"{name} is of the unknown version {version} of .npy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd literals, which are refused or right
        shape, is_fortran, dtype = _HEADERS[version](file)
    return shape, is_fortran, dtype


def _problem(images: np.ndarray, labels: np.ndarray | None) -> str | None:
    if images.dtype != np.uint8 or images.ndim != 4:
        return (
            "images must be uint8 [count, height, width, channels]; "
            f"got {images.dtype} {list(images.shape)}"
        )
    if labels is None:
        return None
    labels = np.asarray(labels)
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        return (
            f"labels must be integers [{len(images)}], one an image; "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    return None
