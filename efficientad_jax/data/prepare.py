"""Datasets are written once, in tensorflow-datasets' form, and by one at a time."""

import contextlib
import io
import tempfile
import threading
from pathlib import Path

import tensorflow_datasets as tfds

from efficientad_jax.errors import InputError

_FORMAT = "array_record"

# What is printed is held back for the whole process, and two threads may want the same dataset.
_ONE_AT_A_TIME = threading.RLock()


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Writes a builder's array_record files, unless they are there; nothing stays of a failure.

    Raises:
      InputError: an image cannot be used, or the folder cannot be written to.
    """
    folder = Path(str(builder.data_path))
    before = _existing_parent(folder)
    tfds.disable_progress_bar()
    try:
        # Nothing is downloaded, and what is printed speaks of downloads.
        with (
            _ONE_AT_A_TIME,
            tempfile.TemporaryDirectory() as empty,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            builder.download_and_prepare(download_dir=empty, file_format=_FORMAT)
    except BaseException as error:
        # tensorflow-datasets has removed its unfinished copy, not the folders around it.
        _remove_empty(folder.parent, before)
        # array_record raises RuntimeError where a disk is full.
        if not isinstance(error, OSError | RuntimeError):
            raise
        if not folder.is_dir():
            raise InputError(f"dataset folder {folder}: cannot be written ({error})") from error
        # Another process has prepared the same dataset meanwhile: take that.
        builder.info.read_from_directory(str(folder))
    if not builder.info.splits:
        # Another thread or process has prepared it after this builder was made.
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
