"""The weights of the FID network: where to get them, and that they are the right ones.

They are those of Google's graph of 2015-12-05, as torch-fidelity and pytorch-fid give
them out: both of their files are the same bytes. Such a file is read as it is, without
PyTorch. `save_weights` keeps the same arrays in an .npz.
"""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from multistep_cm.errors import UserError
from multistep_cm.evaluation import npz
from multistep_cm.evaluation.inception import NUM_CLASSES, SIDE, Inception
from multistep_cm.evaluation.torch_file import read_tensors
from multistep_cm.files import check_regular

URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
WHERE = f"get it from {URL} (95,628,359 bytes, sha256 {SHA256})"

EPSILON = 1e-3
SOURCE = "source_sha256"
"""In our .npz: the sha256 of the file that its arrays come from."""

Arrays = Mapping[str, np.ndarray]


def load_weights(path: str | Path) -> dict[str, Any]:
    """Parameters of `Inception`, float32 on the host, from a .pth or from our .npz.

    Raises:
      UserError: no such file; one with another sha256, or arrays of another network.
    """
    return to_params(read_weights(path))


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a weight file, named and laid out as in the .pth.

    Raises:
      UserError: as `load_weights`.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            arrays = npz.read_arrays(path)
            found = str(arrays.pop(SOURCE, np.array("")))
        else:
            check_regular(path)
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            arrays = {}
        _check_sha256(path, found)
        if path.suffix != ".npz":
            arrays = read_tensors(path)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"{path}, the weights of the FID network, is no file: {WHERE}"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as weights of the FID network ({error}): {WHERE}"
        ) from error
    check_arrays(path, arrays)
    return arrays


def save_weights(path: str | Path, arrays: Arrays, source_sha256: str) -> Path:
    """Writes an .npz that `read_weights` reads, and returns its path."""
    source = {SOURCE: np.array(source_sha256)}
    return npz.write_arrays(path, dict(arrays) | source)


def to_params(arrays: Arrays) -> dict[str, Any]:
    """Parameters of `Inception`: transposed, batch normalisation folded in float64.

    gain = weight / sqrt(running_var + 0.001); kernel * gain; bias - running_mean * gain
    """
    leaves: dict[tuple[str, ...], np.ndarray] = {}
    for layer in _convolutions():
        name = ".".join(layer)
        norm = {
            part: arrays[f"{name}.bn.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        gain = norm["weight"] / np.sqrt(norm["running_var"] + EPSILON)
        kernel = arrays[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * gain
        leaves[*layer, "kernel"] = kernel
        leaves[*layer, "bias"] = norm["bias"] - norm["running_mean"] * gain
    leaves["fc", "kernel"] = arrays["fc.weight"].T
    cast = {name: leaf.astype(np.float32) for name, leaf in leaves.items()}
    params: dict[str, Any] = flax.traverse_util.unflatten_dict(cast)
    return params


def check_arrays(path: str | Path, arrays: Arrays) -> None:
    """UserError unless these are all arrays of the network, finite, and no others."""
    expected = expected_shapes()
    for name, shape in expected.items():
        if name not in arrays:
            raise UserError(
                f"{path} is of another network: it lacks {name}, which the FID network "
                f"has: {WHERE}"
            )
        array = arrays[name]
        if array.shape != shape or array.dtype.kind != "f":
            raise UserError(
                f"{path} is of another network: {name} is {array.dtype} "
                f"{list(array.shape)}, expected floats {list(shape)}: {WHERE}"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{path} is damaged: {name} holds NaN or infinity: {WHERE}")
    others = [
        name
        for name in arrays
        if name not in expected and not name.endswith("num_batches_tracked")
    ]
    if others:
        raise UserError(
            f"{path} is of another network: it holds {others[0]}, which the FID "
            f"network does not have: {WHERE}"
        )


@functools.cache
def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a weight file must hold."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (height, width, fan_in, fan_out) in _convolutions().items():
        name = ".".join(layer)
        shapes[f"{name}.conv.weight"] = (fan_out, fan_in, height, width)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (fan_out,)
    shapes["fc.weight"] = (NUM_CLASSES, 2048)
    shapes["fc.bias"] = (NUM_CLASSES,)
    return shapes


@functools.cache
def _convolutions() -> dict[tuple[str, ...], tuple[int, ...]]:
    """The path of each convolution in the network, and the shape of its kernel."""
    pixels = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    tree = jax.eval_shape(Inception().init, jax.random.key(0), pixels)["params"]
    leaves = flax.traverse_util.flatten_dict(tree)
    return {
        path[:-1]: leaf.shape
        for path, leaf in leaves.items()
        if path[-1] == "kernel" and path[0] != "fc"
    }


def _check_sha256(path: Path, found: str) -> None:
    if found != SHA256:
        raise UserError(
            f"{path} is not the weight file of the FID network: its sha256 is "
            f"{found or 'not said'}: {WHERE}"
        )
