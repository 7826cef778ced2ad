"""Photographs to distil from: any number, read one by one where and when they are needed.

They lie in a folder, or in a dataset of tensorflow-datasets (ImageNet and many others), of which
the encoded images are read from array_record files, without TensorFlow.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import UInt8
from numpy import ndarray

from efficientad_jax.data.decoding import decode_image
from efficientad_jax.data.files import list_images
from efficientad_jax.errors import InputError, first_line

PREFIX = "tfds:"
_SPLIT = "train"


class Photographs(NamedTuple):
    """Photographs that can be read in any order, also in other processes.

    Attributes:
      name: of the folder, or 'tfds:' and the full name of the dataset with its version.
      records: a path each, or a dict with the encoded bytes as 'image'.
      license: of the images as their dataset states it, '' where nothing does.
    """

    name: str
    records: Sequence[Any]
    license: str


def open_photographs(images: str, data_dir: str = "") -> Photographs:
    """Opens a folder or a dataset; no image is read yet.

    Args:
      images: a folder, or 'tfds:NAME' for the split 'train' of a dataset of tensorflow-datasets
        with a feature 'image', such as 'tfds:imagenet2012' or 'tfds:imagenette/320px-v2'. Unless
        it is prepared, it is downloaded and prepared.
      data_dir: where prepared datasets are kept, '' for tensorflow-datasets' own folder.

    Raises:
      InputError: there is no such folder or dataset, or no image in it, or it cannot be prepared.
    """
    if not images.startswith(PREFIX):
        return Photographs(Path(images).name, list_images(Path(images)), "")
    # Slow to import, and needed for nothing else.
    import tensorflow_datasets as tfds

    name = images.removeprefix(PREFIX)
    said = f"config.images = {images!r}"
    try:
        builder: Any = tfds.builder(name, data_dir=data_dir or None)
    except Exception as error:  # of an unknown name or version, or because it needs TensorFlow
        raise InputError(
            f"{said}: tensorflow-datasets cannot open it ({first_line(error)})"
        ) from error
    if "image" not in (builder.info.features or {}):
        raise InputError(f"{said}: has no feature 'image', expected a dataset of images")
    try:
        if not builder.is_prepared():
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # whatever a builder of somebody else's may raise
        raise InputError(
            f"{said}: cannot be prepared in {builder.data_path} ({first_line(error)}); a dataset "
            "that asks for TensorFlow can be prepared where that is installed: see docs/teacher.md"
        ) from error
    try:
        decoders: Any = {"image": tfds.decode.SkipDecoding()}
        records = builder.as_data_source(_SPLIT, decoders=decoders)
    except (NotImplementedError, ValueError) as error:
        raise InputError(
            f"{said}: {builder.data_path} cannot be read ({first_line(error)}); expected a split "
            f"{_SPLIT!r} as array_record files: prepare it anew with file_format='array_record'"
        ) from error
    license_ = builder.info.redistribution_info.license
    return Photographs(f"{PREFIX}{builder.info.full_name}", records, license_)


def read_photograph(photographs: Photographs, index: int) -> UInt8[ndarray, "h w 3"]:
    """Reads and decodes one of them.

    Raises:
      InputError: it cannot be read or decoded; it is named.
    """
    record = photographs.records[index]
    if isinstance(record, Path):
        return decode_image(record)
    return decode_image(record["image"], f"{index} of {photographs.name}")
