"""What every dataset here consists of, and its form on disk."""

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
