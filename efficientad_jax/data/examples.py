"""What every dataset here consists of, and its form on disk through tensorflow-datasets."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from efficientad_jax.data.decoding import decode_image, decode_mask
from efficientad_jax.errors import InputError

GOOD = "good"


class Example(NamedTuple):
    """One image file.

    Attributes:
      image: its path.
      name: unique within the dataset, such as `test/crack/017.png`.
      defect: kind of defect, 'good' for none.
      mask: path of the mask of its defect, None without one.
    """

    image: Path
    name: str
    defect: str
    mask: Path | None = None


# Images stay as the bytes of their files: this package decodes them, the same way everywhere.
FEATURES = {
    "image": tfds.features.Image(),
    "masks": tfds.features.Sequence(tfds.features.Image()),
    "label": tfds.features.ClassLabel(names=("normal", "anomalous")),
    "defect": tfds.features.Text(),
    "name": tfds.features.Text(),
}


class StoredBytes(tfds.decode.SkipDecoding):
    """Skips the decoding of images, also of a sequence of them, which the base class cannot."""

    def decode_batch_example_np(self, serialized_images: Any) -> Any:
        """Returns the bytes of each image as they are."""
        return serialized_images


def generate(examples: list[Example]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a builder's `_generate_examples` yields, each image being decoded once as a check.

    Raises:
      InputError: an image or mask cannot be decoded, or a mask has another size than its image.
    """
    for example in examples:
        size = decode_image(example.image).shape[:2]
        if example.mask is not None:
            mask_size = decode_mask(example.mask).shape
            if mask_size != size:
                raise InputError(
                    f"mask {example.mask}: {mask_size[0]}x{mask_size[1]} pixels, expected the "
                    f"{size[0]}x{size[1]} of its image {example.image}"
                )
        yield (
            example.name,
            {
                "image": str(example.image),
                "masks": [] if example.mask is None else [str(example.mask)],
                "label": int(example.defect != GOOD),
                "defect": example.defect,
                "name": example.name,
            },
        )


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
        with tempfile.TemporaryDirectory() as empty, contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_dir=empty, file_format="array_record")
    except BaseException as error:
        # tensorflow-datasets has removed its unfinished copy, not the folders around it.
        _remove_empty(folder.parent, before)
        if not isinstance(error, OSError):
            raise
        if not folder.is_dir():
            raise InputError(f"dataset folder {folder}: cannot be written ({error})") from error
        # Another process has prepared the same dataset meanwhile: take that.
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
