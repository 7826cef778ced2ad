"""The examples that every dataset consists of, their files, and how these are read."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from efficientad_jax.data.decoding import (
    WHITE_LEVEL,
    ImageSource,
    decode_image_and_peak,
    decode_mask,
    size_of_image,
)
from efficientad_jax.data.framing import (
    Framing,
    cut_out,
    fit_for,
    network_input,
    proportional_size,
    seen_size,
)
from efficientad_jax.data.framing_file import own_mask_in_input, own_mask_of
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


class Reading(NamedTuple):
    """How images are read; see `load_dataset`."""

    size: tuple[int, int]
    framing: Framing
    white_level: int
    proportional: bool = False
    chooses_fit: bool = False
    own_masks: Mapping[str, Path] | None = None

    def suited_to(
        self,
        train: Iterable[tuple[str, ImageSource]],
        validation: Iterable[tuple[str, ImageSource]] = (),
    ) -> "Reading":
        """With the size and the fit that suit the named images, if they depend on them."""
        if not self.proportional and not self.chooses_fit:
            return self
        sizes = [seen_size(self.framing, size_of_image(image, name)) for name, image in train]
        size = proportional_size(sizes, self.size) if self.proportional else self.size
        if not self.chooses_fit:
            return self._replace(size=size)
        sizes += [seen_size(self.framing, size_of_image(image, name)) for name, image in validation]
        return self._replace(size=size, framing=replace(self.framing, fit=fit_for(sizes)))


class Framed(NamedTuple):
    """An image as the networks get it; the fields are those of an `ImageSet`."""

    image: UInt8[np.ndarray, "h w 3"]
    size: tuple[int, int]
    own_mask: Bool[np.ndarray, "h w"] | None
    ignored: Bool[np.ndarray, "_h _w"] | None


def frame(
    image: UInt8[np.ndarray, "_h _w 3"], name: str, source: str, *, reading: Reading, split: str
) -> Framed:
    """Frames an image of a dataset; `source` is its name for messages."""
    framing, size = reading.framing, (image.shape[0], image.shape[1])
    seen, own_mask, ignored = seen_size(framing, size), None, None
    if reading.own_masks is not None:
        whole = own_mask_of(reading.own_masks, framing, name, size=size)
        own_mask = own_mask_in_input(framing, whole, reading.size)
        ignored = cut_out(framing, whole) if split == "test" else None  # for the metrics
    pixels = network_input(framing, image, reading.size, name=source, own_mask=own_mask)
    return Framed(pixels, seen, own_mask, ignored)


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
