"""Sample files in the layout that the ADM evaluator reads.

`arr_0` holds the images, uint8 [count, height, width, channels]; `arr_1`, where there
is one, their class labels, integer [count].
"""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from multistep_cm.errors import UserError


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
    """Writes an .npz aside and renames it, so that a reader sees all or nothing."""
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"{path} must end in .npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        with aside.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; never runs code from it (no pickle).

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an .npz file, damaged, or it holds pickled objects.
    """
    with Path(path).open("rb") as file:
        try:
            loaded = np.load(file)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an .npz archive")
            return {name: loaded[name] for name in loaded.files}
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise ValueError(str(error)) from error


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
