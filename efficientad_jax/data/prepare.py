"""Writes a dataset's files in the format of tensorflow-datasets, once and one dataset at a time."""

import contextlib
import io
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from efficientad_jax.data.decoding import decode_image
from efficientad_jax.data.examples import GOOD, Example, read_files
from efficientad_jax.data.saturation import saturation_area
from efficientad_jax.errors import InputError
from efficientad_jax.storage.atomic import write_atomically

_log = logging.getLogger(__name__)

_FORMAT = "array_record"
# A file in each copy of a user's files that says which files they are.
_SOURCE = "source.txt"

# Images are stored as the bytes of their files, so that this package decodes all images itself.
FEATURES = {
    "image": tfds.features.Image(),
    "masks": tfds.features.Sequence(tfds.features.Image()),
    "label": tfds.features.ClassLabel(names=("normal", "anomalous")),
    "defect": tfds.features.Text(),
    "name": tfds.features.Text(),
}
# One area per mask.
SATURATION_FEATURES = {"saturation_areas": tfds.features.Sequence(np.float64)}

# Standard output is redirected for the whole process, and two threads may need the same dataset.
_LOCK = threading.RLock()


class StoredBytes(tfds.decode.SkipDecoding):
    """Skips the decoding of images and, unlike the base class, of sequences of images."""

    def decode_batch_example_np(self, serialized_images: Any) -> Any:
        """Returns the bytes of each image unchanged."""
        return serialized_images


def generate(examples: list[Example]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the keys and features that a builder of tensorflow-datasets stores.

    Each image and mask is decoded once, as a check.

    Raises:
      InputError: an image or a mask cannot be decoded, a mask differs in size from its image, or a
        mask marks a defect by a value without a saturation.
    """
    for example in examples:
        read_files(example)
        features = {
            "image": str(example.image),
            "masks": [str(mask) for mask in example.masks],
            "label": int(example.defect != GOOD),
            "defect": example.defect,
            "name": example.name,
        }
        if example.saturations is not None:
            features["saturation_areas"] = [
                saturation_area(decode_image(mask)[..., 0], example.saturations, str(mask))
                for mask in example.masks
            ]
        yield example.name, features


def write_dataset(builder: tfds.core.DatasetBuilder, source: str = "") -> None:
    """Writes a builder's array_record files, unless they exist. An error leaves no files behind.

    Args:
      builder: of the dataset.
      source: names the files that are copied, such as a folder and a category. Earlier copies of
        the same files are removed when a new one is written; '' removes none.

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
    if source:
        _remove_outdated(folder, source)
    if not builder.info.splits:
        # Another thread or process wrote the dataset after this builder was created.
        builder.info.set_file_format(_FORMAT, override=True)
        builder.info.read_from_directory(str(folder))


def _remove_outdated(folder: Path, source: str) -> None:
    """Removes other copies of the same source. `folder` is DATA_DIR/NAME/CONFIGURATION/VERSION."""
    try:
        if (folder / _SOURCE).is_file():
            return
        write_atomically(folder / _SOURCE, source.encode())
        for file in folder.parents[1].glob(f"*/*/{_SOURCE}"):
            if file.parent != folder and file.read_text(errors="replace") == source:
                _log.warning("removed %s, a copy of files that have changed", file.parents[1])
                shutil.rmtree(file.parents[1])
    except OSError as error:
        _log.warning("copies of files that have changed are not removed: %s", error)


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
