"""Files read within bounds, and written aside: readers see the old one or the new one.

What a file says of its size is never believed before the bytes are there, and no file
is read that does not end: a pipe would be waited for, a device would fill the memory.
"""

import contextlib
import errno
import fcntl
import glob
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from multistep_cm.errors import UserError

LARGEST_TEXT = 2**24
"""Bytes of a config or of results: those of any run are a thousand times smaller."""

LONGEST_NAME, LONGEST_PATH = 255, 4096
"""Bytes that Linux and macOS have for a name of a file and for a whole path."""

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What a file system answers that has no locks, as those of some clusters."""


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; at the end it is on disk and takes its place.

    After an error nothing of it is left and `path` is what it was; what a killed
    process left, the next one removes. Raises UserError when the system refuses, as a
    full disk does.
    """
    _clear_leftovers(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _clear_leftovers(path: Path) -> None:
    """Remove what processes that run no more have left beside `path`."""
    for aside in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process = aside.name.split(".")[-2]
        if process.isdecimal() and not _runs(int(process)):
            with contextlib.suppress(OSError):
                aside.unlink()


def _runs(process: int) -> bool:
    """Whether there is such a process on this machine, ours or another's."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if absent; UserError when that is refused."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {path} cannot be made: {reason(error)}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file aside, in UTF-8; UserError when it cannot be written."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Wait until nobody else is here with this file: to read it and write it anew.

    The lock ends with its process, however that ends: one that was killed keeps nobody
    waiting, though its empty `.lock` file may stay. File systems without locks give
    none. Raises UserError where nothing can be written.
    """
    lock = path.with_name(f"{path.name}.lock")
    while True:
        try:
            file = lock.open("w")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {reason(error)}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
            # Who was here before has removed it: others may have made another.
            if not _is_open_as(file.fileno(), lock):
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_open_as(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def read_text(path: Path, most_bytes: int = LARGEST_TEXT) -> str:
    """A text file in UTF-8.

    Raises:
      OSError: it does not exist or cannot be read.
      ValueError: it is larger, is no UTF-8, or is a folder, pipe or device.
    """
    try:
        return read_bytes(path, most_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} of it is no UTF-8 text") from error


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """A whole file of so many bytes at most.

    Raises:
      OSError: it does not exist or cannot be read.
      ValueError: it is larger, or is a folder, pipe or device.
    """
    check_regular(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise ValueError(
                f"it has {size:,} bytes, expected {most_bytes:,} at the most"
            )
        return file.read(size)  # a larger number would be allocated


def path_problem(text: str) -> str:
    """Why no file can have this name; "" where one can."""
    if not text:
        return "it is empty"
    if "\0" in text:
        return "it holds a NUL"
    name = os.fsencode(text)
    if len(name) >= LONGEST_PATH or max(map(len, name.split(b"/"))) > LONGEST_NAME:
        return f"it is longer than a name of {LONGEST_NAME} bytes can be"
    return ""


def is_folder(path: Path) -> bool:
    """Whether it is one; also where the system cannot say, as for a name too long."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def with_home(text: str) -> Path:
    """The path of `text`, in which "~" is the user's folder where there is one."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # "~name" of somebody unknown
        return Path(text)


def check_regular(path: Path) -> None:
    """ValueError for what is neither a file nor a link to one; OSError for nothing."""
    if not stat.S_ISREG(path.stat().st_mode):
        kind = "a folder" if path.is_dir() else "a pipe or device"
        raise ValueError(f"it is {kind}, expected a file")


def reason(error: OSError) -> str:
    """What the system says of an error, without the name of a file."""
    return error.strerror or str(error) or type(error).__name__
