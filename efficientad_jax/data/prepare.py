"""Writes a dataset's files in the format of tensorflow-datasets, once and one dataset at a time."""

import contextlib
import io
import tempfile
import threading
from pathlib import Path

import tensorflow_datasets as tfds

from efficientad_jax.errors import InputError

_FORMAT = "array_record"

# Standard output is redirected for the whole process, and two threads may need the same dataset.
_LOCK = threading.RLock()


def write_dataset(builder: tfds.core.DatasetBuilder) -> None:
    """Writes a builder's array_record files, unless they exist. An error leaves no files behind.

    Raises:
      InputError: an image cannot be used, or the folder cannot be written.
    """
    folder = Path(str(builder.data_path))
    existing = _existing_parent(folder)
    tfds.disable_progress_bar()
    try:
        # Nothing is downloaded, but tensorflow-datasets prints messages about a download.
        with (
            _LOCK,
            tempfile.TemporaryDirectory() as empty,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            builder.download_and_prepare(download_dir=empty, file_format=_FORMAT)
    except BaseException as error:
        # tensorflow-datasets has removed its unfinished copy, but not the parent folders.
        _remove_empty(folder.parent, existing)
        # array_record raises RuntimeError when the disk is full.
        if not isinstance(error, OSError | RuntimeError):
            raise
        if not folder.is_dir():
            raise InputError(
                f"dataset folder {folder}: cannot be written ({error}), expected a folder with "
                "enough space; set config.dataset.data_dir to another one"
            ) from error
        # Another process has written the same dataset in the meantime: use its files.
        builder.info.read_from_directory(str(folder))
    if not builder.info.splits:
        # Another thread or process wrote the dataset after this builder was created.
        builder.info.set_file_format(_FORMAT, override=True)
        builder.info.read_from_directory(str(folder))


def _existing_parent(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _remove_empty(folder: Path, stop: Path) -> None:
    while folder != stop and folder.is_relative_to(stop):
        if folder.is_dir():
            if any(folder.iterdir()):
                return
            folder.rmdir()
        folder = folder.parent
