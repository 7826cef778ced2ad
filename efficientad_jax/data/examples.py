"""The examples that every dataset consists of, and how tensorflow-datasets stores them."""

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
        _check_names(example)
        size = decode_image(example.image).shape[:2]
        for mask in example.masks:
            mask_size = decode_mask(mask).shape
            if mask_size != size:
                raise InputError(
                    f"mask {mask}: {mask_size[0]}x{mask_size[1]} pixels, expected the "
                    f"{size[0]}x{size[1]} of its image {example.image}"
                )
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


def _check_names(example: Example) -> None:
    """Refuses paths that cannot be stored as text."""
    for path in (example.image, *example.masks):
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"image {path}: its path is not UTF-8, expected a name that is; rename the file"
            ) from error
