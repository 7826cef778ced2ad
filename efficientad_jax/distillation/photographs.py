"""Photographs to distill from: any number, each read when and where it is needed.

They are in a folder, or in a dataset of tensorflow-datasets (ImageNet and many others), whose
encoded images are read from array_record files, without TensorFlow.
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
    """Photographs that can be read in any order and in other processes.

    Attributes:
      name: of the folder, or 'tfds:' and the full name of the dataset with its version.
      records: for each photograph its path, or a dict with its encoded bytes as 'image'.
      license: the license that the dataset states, '' if it states none.
    """

    name: str
    records: Sequence[Any]
    license: str


def open_photographs(images: str, data_dir: str = "") -> Photographs:
    """Opens a folder or a dataset; no image is read yet.

    Args:
      images: a folder, or 'tfds:NAME' for the split 'train' of a dataset of tensorflow-datasets
        with a feature 'image', such as 'tfds:imagenet2012' or 'tfds:imagenette/320px-v2'. It is
        downloaded and prepared if necessary.
      data_dir: where prepared datasets are kept, '' for the default of tensorflow-datasets.

    Raises:
      InputError: there is no such folder or dataset, it has no image, or it cannot be prepared.
    """
    if not images.startswith(PREFIX):
        return Photographs(Path(images).name, list_images(Path(images)), "")
    # Imported here because that is slow and only needed here.
    import tensorflow_datasets as tfds

    name = images.removeprefix(PREFIX)
    field = f"config.images = {images!r}"
    try:
        builder: Any = tfds.builder(name, data_dir=data_dir or None)
    except Exception as error:  # an unknown name or version, or it needs TensorFlow
        raise InputError(
            f"{field}: tensorflow-datasets cannot open it ({first_line(error)})"
        ) from error
    if "image" not in (builder.info.features or {}):
        raise InputError(f"{field}: has no feature 'image', expected a dataset of images")
    try:
        if not builder.is_prepared():
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # builders may raise anything
        raise InputError(
            f"{field}: cannot be prepared in {builder.data_path} ({first_line(error)}); a dataset "
            "that asks for TensorFlow can be prepared where that is installed: see docs/teacher.md"
        ) from error
    try:
        decoders: Any = {"image": tfds.decode.SkipDecoding()}
        records = builder.as_data_source(_SPLIT, decoders=decoders)
    except (NotImplementedError, ValueError) as error:
        raise InputError(
            f"{field}: {builder.data_path} cannot be read ({first_line(error)}); expected a split "
            f"{_SPLIT!r} as array_record files: prepare it again with file_format='array_record'"
        ) from error
    license_ = builder.info.redistribution_info.license
    return Photographs(f"{PREFIX}{builder.info.full_name}", records, license_)


def read_photograph(photographs: Photographs, index: int) -> UInt8[ndarray, "h w 3"]:
    """Reads and decodes a photograph, RGB in 0..255.

    Raises:
      InputError: it cannot be read or decoded; the message names it.
    """
    record = photographs.records[index]
    if isinstance(record, Path):
        return decode_image(record)
    return decode_image(record["image"], f"{index} of {photographs.name}")
