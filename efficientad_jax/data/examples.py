"""The examples that every dataset consists of, and their files."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from efficientad_jax.data.decoding import WHITE_LEVEL, decode_image_and_peak, decode_mask
from efficientad_jax.data.saturation import Saturation
from efficientad_jax.errors import InputError

GOOD = "good"


class Example(NamedTuple):
    """One image file.

    Attributes:
      image: path of the image file.
      name: unique within the dataset, such as `test/crack/017.png`.
      defect: kind of defect, 'good' for none.
      masks: paths of the mask files of its defects.
      saturations: the saturation of each pixel value that marks a defect in the masks; None for a
        dataset that does not define saturations.
    """

    image: Path
    name: str
    defect: str
    masks: tuple[Path, ...] = ()
    saturations: Mapping[int, Saturation] | None = None


def read_files(
    example: Example, white_level: int = WHITE_LEVEL
) -> tuple[UInt8[np.ndarray, "h w 3"], list[Bool[np.ndarray, "h w"]], int | None]:
    """Decodes the image and the masks of an example.

    Args:
      example: names the files.
      white_level: see `decode_image`.

    Returns:
      The image, the masks, and the largest value of an image of 16 bits, None for others.

    Raises:
      InputError: a path is not UTF-8, a file cannot be decoded, a mask differs in size from its
        image, or the mask of a good image marks a defect.
    """
    _check_names(example)
    image, peak = decode_image_and_peak(example.image, white_level=white_level)
    masks = []
    for path in example.masks:
        mask = decode_mask(path)
        if mask.shape != image.shape[:2]:
            raise InputError(
                f"mask {path}: {mask.shape[0]}x{mask.shape[1]} pixels, expected the "
                f"{image.shape[0]}x{image.shape[1]} of its image {example.image}"
            )
        if example.defect == GOOD and mask.any():
            raise InputError(
                f"mask {path}: marks {np.count_nonzero(mask)} pixels of an image that counts as "
                f"good, expected none; move {example.image} to a folder of defects, or delete the "
                "mask"
            )
        masks.append(mask)
    return image, masks, peak


def _check_names(example: Example) -> None:
    """Refuses paths that are not text."""
    for path in (example.image, *example.masks):
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"image {path}: its path is not UTF-8, expected a name that is; rename the file"
            ) from error
