"""What every dataset here consists of, and its form on disk through tensorflow-datasets."""

import contextlib
import io
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from efficientad_jax.data.decoding import decode_image, decode_mask
from efficientad_jax.data.saturation import Saturation, saturation_area
from efficientad_jax.errors import InputError

GOOD = "good"


class Example(NamedTuple):
    """One image file.

    Attributes:
      image: its path.
      name: unique within the dataset, such as `test/crack/017.png`.
      defect: kind of defect, 'good' for none.
      masks: paths of the masks of its defects.
      saturations: by the values that mark defects in the masks; None where there are none.
    """

    image: Path
    name: str
    defect: str
    masks: tuple[Path, ...] = ()
    saturations: Mapping[int, Saturation] | None = None


# Images stay as the bytes of their files: this package decodes them, the same way everywhere.
FEATURES = {
    "image": tfds.features.Image(),
    "masks": tfds.features.Sequence(tfds.features.Image()),
    "label": tfds.features.ClassLabel(names=("normal", "anomalous")),
    "defect": tfds.features.Text(),
    "name": tfds.features.Text(),
}
# One area for each of the masks.
SATURATION_FEATURES = {"saturation_areas": tfds.features.Sequence(np.float64)}


class StoredBytes(tfds.decode.SkipDecoding):
    """Skips the decoding of images, also of a sequence of them, which the base class cannot."""

    def decode_batch_example_np(self, serialized_images: Any) -> Any:
        """Returns the bytes of each image as they are."""
        return serialized_images


def generate(examples: list[Example]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a builder's `_generate_examples` yields, each image being decoded once as a check.

    Raises:
      InputError: an image or mask cannot be decoded, a mask has another size than its image, or
        marks a defect by a value without a saturation.
    """
    for example in examples:
        _check_names(example)
        size = decode_image(example.image).shape[:2]
        for mask in example.masks:
            mask_size = decode_mask(mask).shape
            if mask_size != size:
                raise InputError(
                    f"mask {mask}: {mask_size[0]}x{mask_size[1]} pixels, expected the "
                    f"{size[0]}x{size[1]} of its image {example.image}"
                )
        record = {
            "image": str(example.image),
            "masks": [str(mask) for mask in example.masks],
            "label": int(example.defect != GOOD),
            "defect": example.defect,
            "name": example.name,
        }
        if example.saturations is not None:
            record["saturation_areas"] = [
                saturation_area(decode_image(mask)[..., 0], example.saturations, str(mask))
                for mask in example.masks
            ]
        yield example.name, record


def _check_names(example: Example) -> None:
    """Names are stored as text, and files are found by it."""
    for path in (example.image, *example.masks):
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"image {path}: its path is not UTF-8; rename it") from error


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
