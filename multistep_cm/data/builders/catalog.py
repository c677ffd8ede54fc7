"""From a dataset's name to a TFDS builder whose data are on disk."""

import difflib
from collections.abc import Mapping

import tensorflow_datasets as tfds

from multistep_cm.data.builders.described import check_described, description_files
from multistep_cm.data.builders.digit_scenes import DigitScenes
from multistep_cm.data.builders.digits8 import Digits8
from multistep_cm.errors import UserError
from multistep_cm.files import is_folder, with_home

# Datasets of this package. They need no download and are prepared on first use.
BUILDERS: Mapping[str, type[tfds.core.GeneratorBasedBuilder]] = {
    "digits8": Digits8,
    "digit_scenes": DigitScenes,
}


def open_builder(name: str, directory: str = "") -> tfds.core.DatasetBuilder:
    """The builder of a dataset by its TFDS name (`cifar10`, `imagenet_resized/64x64`).

    `directory` is TFDS's `data_dir`; empty is its default. A dataset of `BUILDERS` is
    prepared on disk if it is not there yet.

    Raises UserError for a name that TFDS does not know, with the nearest ones, and for
    a directory in which one of our datasets cannot be written.
    """
    data_dir = str(with_home(directory)) if _is_local(directory) else directory
    if "=" in name or "," in name or "\0" in name:
        raise UserError(
            f"config key data.name is {name!r:.100}, expected NAME or NAME/CONFIG, "
            "with no arguments"
        )
    check_described(name, data_dir)
    base, _, variant = name.partition("/")
    ours = BUILDERS.get(base)
    try:
        if ours is not None and variant in _variants(ours):
            return prepared(ours, data_dir, variant)
        return tfds.builder(name, data_dir=data_dir or None)
    # TFDS says "no such dataset", "no such config" and "no such version" in these.
    except (ValueError, AssertionError) as error:
        raise UserError(_unknown(name, directory, data_dir, error)) from error
    # Its readers of JSON and of protocol buffers raise what they like.
    except Exception as error:
        if isinstance(error, UserError) or not any(description_files(name, data_dir)):
            raise
        raise UserError(_damaged(name, data_dir, error)) from error


def _damaged(name: str, data_dir: str, error: Exception) -> str:
    return (
        f"dataset {name!r} in {data_dir or 'the default folder of TFDS'} is damaged: "
        f"{type(error).__name__}: {_first_line(error)}; delete its folder and prepare "
        "it again"
    )


def _unknown(name: str, directory: str, data_dir: str, error: Exception) -> str:
    """Why TFDS has no builder of this name, and what comes nearest."""
    if name and is_folder(with_home(name)):
        return (
            f"config key data.name is {name!r}, which is a folder and no dataset of "
            f"TFDS: set data.name=folder and data.directory={name} (in "
            f"configs/images.py folder={name})"
        )
    base = name.partition("/")[0].partition(":")[0]
    known = {*BUILDERS, *tfds.list_builders(with_community_datasets=False)}
    if base not in known:
        if any(description_files(name, data_dir)):
            return _damaged(name, data_dir, error)
        near = difflib.get_close_matches(base, sorted(known), n=3, cutoff=0.0)
        return (
            f"config key data.name is {name!r}, which is no dataset of TFDS or in "
            f"data.directory = {directory!r}; the nearest names are {', '.join(near)}"
        )
    builder_class = tfds.builder_cls(base)
    configs = [f"{base}/{config.name}" for config in builder_class.BUILDER_CONFIGS]
    return (
        f"config key data.name is {name!r}, but {base} has no such config or version; "
        f"expected {', '.join(configs) or f'{base} alone'}"
    )


def _variants(
    builder_class: type[tfds.core.GeneratorBasedBuilder],
) -> tuple[str, ...]:
    """What may stand behind the "/" of a dataset's name; "" is the first of them."""
    return ("", *(config.name for config in builder_class.BUILDER_CONFIGS))


def prepared(
    builder_class: type[tfds.core.GeneratorBasedBuilder],
    data_dir: str,
    variant: str = "",
) -> tfds.core.GeneratorBasedBuilder:
    """A builder of ours with its data on disk, generated if absent or not whole.

    TFDS generates into a folder of its own and renames it at the end, so neither an
    interruption nor a second process that does the same leaves half a dataset.
    """

    def make() -> tfds.core.GeneratorBasedBuilder:
        return builder_class(
            data_dir=data_dir or None,
            config=variant or None,
            file_format="array_record",
        )

    try:
        builder = make()
        if not is_whole(builder):
            generate(builder)
            # The first builder does not know what another process has written.
            builder = make()
    except (OSError, ValueError) as error:
        raise UserError(
            f"dataset {builder_class.name!r} cannot be prepared in "
            f"{data_dir or 'the default folder of TFDS'}: {_first_line(error)}; set "
            "data.directory to another folder"
        ) from error
    return builder


def is_whole(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether the dataset and all files that it names are on disk."""
    if not (builder.data_path / "dataset_info.json").exists():
        return False
    splits = builder.info.splits.values()
    files = [builder.data_path / name for s in splits for name in s.filenames]
    return bool(files) and all(path.exists() for path in files)


def generate(builder: tfds.core.GeneratorBasedBuilder) -> None:
    """Write the dataset, over what is there and is not whole.

    Raises OSError if it cannot be written.
    """
    mode = tfds.GenerateMode.REUSE_DATASET_IF_EXISTS
    if builder.data_path.exists():
        mode = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
    config = tfds.download.DownloadConfig(try_download_gcs=False, download_mode=mode)
    tfds.disable_progress_bar()  # a second of work
    try:
        builder.download_and_prepare(download_config=config)
    except OSError:
        # Another process may have been faster: then its folder is in the way of ours.
        again = type(builder)(
            data_dir=builder.data_dir_root,
            config=builder.builder_config,
            file_format="array_record",
        )
        if not is_whole(again):
            raise
    finally:
        tfds.enable_progress_bar()


def prepare_command(name: str, directory: str) -> str:
    """The Python code that downloads and prepares a dataset in a format we can read."""
    place = f", data_dir={directory!r}" if directory else ""
    return (
        f"import tensorflow_datasets as tfds; tfds.builder({name!r}{place}, "
        'file_format="array_record").download_and_prepare()'
    )


def _is_local(directory: str) -> bool:
    return bool(directory) and "://" not in directory


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
