"""Arrays out of a PyTorch file of tensors, without PyTorch and without running it.

Such a file describes its tensors in a little stack language that can also name any
function to call. Here the words are read, not executed: what is known to describe
tensors is understood, and everything else is refused. Both layouts are read: the zip
archive of PyTorch 1.6 and later, and the plain sequence before it.
"""

import collections
import dataclasses
import io
import math
import pickletools  # lists the words of a description; it calls nothing
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from multistep_cm.files import read_bytes

LARGEST_FILE = 2**31
"""Bytes; the file is held in memory, so that nothing longer can be asked of it."""

DTYPES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.ByteStorage": "<u1",
    "torch.BoolStorage": "?",
}
MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


@dataclasses.dataclass(frozen=True)
class _Name:
    """A function or class that the file names; it is never looked up."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of numbers, by the key under which its bytes lie."""

    dtype: np.dtype[Any]
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides count numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict, by name.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file, damaged, or it holds more than named tensors.
    """
    file = io.BytesIO(read_bytes(Path(path), LARGEST_FILE))
    try:
        if zipfile.is_zipfile(file):
            return _read_zip(file)
        file.seek(0)
        return _read_sequence(file)
    except (
        *(zipfile.BadZipFile, EOFError, RuntimeError, OSError, zlib.error),
        *(LookupError, TypeError, OverflowError, AttributeError, MemoryError),
    ) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            # Torch packs none. Packed ones could hold a thousand times the file.
            if entry.compress_type or entry.file_size != entry.compress_size:
                raise ValueError(f"its entry {entry.filename!r:.40} is packed")
        names = archive.namelist()
        found = [name for name in names if name.endswith("/data.pkl")]
        if len(found) != 1:
            raise ValueError("an archive, but not one of tensors")
        folder = found[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names:
            order = archive.read(f"{folder}byteorder")
            if order != b"little":
                raise ValueError(f"its byte order is {order!r}, expected little")
        described = _named_tensors(_interpret(io.BytesIO(archive.read(found[0]))))
        bytes_of = {
            tensor.storage.key: archive.read(f"{folder}data/{tensor.storage.key}")
            for tensor in described.values()
        }
    return {name: _view(t, bytes_of[t.storage.key]) for name, t in described.items()}


def _read_sequence(file: BinaryIO) -> dict[str, np.ndarray]:
    if _interpret(file) != MAGIC or _interpret(file) != VERSION:
        raise ValueError("no file of tensors")
    system = _interpret(file)
    if not system["little_endian"]:
        raise ValueError("its byte order is big, expected little")
    described = _named_tensors(_interpret(file))
    storages = {t.storage.key: t.storage for t in described.values()}
    bytes_of = {}
    for key in _interpret(file):
        count = int.from_bytes(_exactly(file, 8), "little")
        if key not in storages or storages[key].count != count:
            raise ValueError(f"storage {key!r:.40} is not the one described")
        bytes_of[key] = _exactly(file, count * storages[key].dtype.itemsize)
    return {name: _view(t, bytes_of[t.storage.key]) for name, t in described.items()}


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise ValueError("it ends too early")
    return data


def _named_tensors(described: Any) -> dict[str, _Tensor]:
    if not isinstance(described, dict):
        raise ValueError(f"it holds a {type(described).__name__}, not named tensors")
    for name, value in described.items():
        if not isinstance(value, _Tensor):
            raise ValueError(f"{name!r:.40} in it is no tensor")
    return described


def _view(tensor: _Tensor, data: bytes) -> np.ndarray:
    storage = tensor.storage
    flat = np.frombuffer(data, storage.dtype)
    if len(flat) != storage.count or len(tensor.shape) != len(tensor.strides):
        raise ValueError(f"storage {storage.key} has another length than described")
    reach = sum(
        (size - 1) * stride
        for size, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    is_empty = 0 in tensor.shape
    if min(numbers) < 0 or (not is_empty and tensor.offset + reach >= len(flat)):
        raise ValueError("a tensor reaches out of its storage")
    if math.prod(tensor.shape) > len(flat):  # strides of 0 repeat numbers without end
        raise ValueError("a tensor has more numbers than its storage")
    strides = [stride * storage.dtype.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(
        flat[tensor.offset :], tensor.shape, strides, writeable=False
    )
    return np.ascontiguousarray(view).reshape(tensor.shape)


def _interpret(file: BinaryIO) -> Any:
    """The value that the words up to the next STOP describe."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    argument: Any
    for opcode, argument, _ in _words(file):
        word = opcode.name
        if word == "STOP":
            return stack.pop()
        if word in ("PROTO", "FRAME"):
            continue
        if word == "MARK":
            marks.append(len(stack))
        elif word in CONSTANTS:
            stack.append(CONSTANTS[word]())
        elif word in LITERALS:
            stack.append(argument)
        elif word == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".")))
        elif word in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif word == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif word in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif word == "TUPLE":
            stack.append(tuple(above_mark()))
        elif word in TUPLES:
            values = stack[-TUPLES[word] :]
            del stack[-TUPLES[word] :]
            stack.append(tuple(values))
        elif word in ("SETITEMS", "APPENDS"):
            values = above_mark()
            _extend(stack[-1], values)
        elif word == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _extend(stack[-1], [key, value])
        elif word == "APPEND":
            value = stack.pop()
            _extend(stack[-1], [value])
        elif word == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif word == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif word == "BUILD":
            stack.pop()  # attributes, such as versions of layers
        else:
            raise ValueError(f"it holds {word}, which describes no tensor")
    raise EOFError("it ends too early")


def _words(file: BinaryIO) -> Iterator[tuple[Any, Any, Any]]:
    """Those up to the next STOP, without warnings of odd text, which is refused."""
    words = pickletools.genops(file)
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            word = next(words, None)
        if word is None:
            return
        yield word


CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _extend(container: Any, values: list[Any]) -> None:
    if isinstance(container, dict):
        # Nothing else: the hash of nested tuples can take for ever.
        if not all(isinstance(key, str) for key in values[::2]):
            raise ValueError("it names something with what is no text")
        container.update(zip(values[::2], values[1::2], strict=True))
    elif isinstance(container, list):
        container.extend(values)
    else:
        raise ValueError("it fills what is neither a dict nor a list")


def _storage(identity: Any) -> _Storage:
    kind, storage, key, _, count, *rest = identity
    if not isinstance(key, str) or not isinstance(count, int):
        raise ValueError("a storage in it has no name or no length")
    if kind != "storage" or storage.name not in DTYPES or any(rest):
        raise ValueError(f"its storage {key!r:.40} is of an unknown kind")
    return _Storage(np.dtype(DTYPES[storage.name]), key, count)


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    match function:
        case _Name("collections.OrderedDict"):
            if arguments:
                raise ValueError("it fills a dict in an unknown way")
            return collections.OrderedDict()
        case _Name("torch._utils._rebuild_tensor_v2"):
            storage, offset, shape, strides, *_ = arguments
            if not isinstance(storage, _Storage):
                raise ValueError("a tensor in it has no storage")
            if not all(isinstance(n, int) for n in (offset, *shape, *strides)):
                raise ValueError("a tensor in it has no shape of whole numbers")
            return _Tensor(storage, offset, tuple(shape), tuple(strides))
        case _Name("torch._utils._rebuild_parameter"):
            return arguments[0]
    if isinstance(function, _Name):
        raise ValueError(f"it asks to call {function}, which makes no tensor")
    raise ValueError("it asks to call what is no function")
