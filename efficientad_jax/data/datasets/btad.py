"""BTAD: photographs of 3 industrial products by beanTech, as a tensorflow-datasets builder.

ROOT/CATEGORY/train/ok/*
ROOT/CATEGORY/test/ok/* and test/ko/*
ROOT/CATEGORY/ground_truth/ko/STEM.*

Images are .bmp in 01 and 03 and .png in 02, masks .png in 01 and 02 and .bmp in 03.
License of the images: CC BY-SA 4.0.
"""

from pathlib import Path

import tensorflow_datasets as tfds

from efficientad_jax.data.datasets.archive import Archive
from efficientad_jax.data.datasets.builder import PublishedDataset, PublishedDatasetBuilder
from efficientad_jax.data.datasets.layout import labeled_images, require_masks, training_images
from efficientad_jax.data.examples import Example

_GOOD = "ok"

_CITATION = """
@inproceedings{Mishra2021,
  author    = {Mishra, Pankaj and Verk, Riccardo and Fornasier, Daniele and Piciarelli, Claudio and
               Foresti, Gian Luca},
  title     = {{VT-ADL}: A Vision Transformer Network for Image Anomaly Detection and Localization},
  booktitle = {30th IEEE/IES International Symposium on Industrial Electronics (ISIE)},
  year      = {2021}
}
"""


def list_examples(root: Path, category: str) -> dict[str, list[Example]]:
    """The examples of a category by split.

    Raises:
      InputError: a folder or a mask is missing, or a mask belongs to no image.
    """
    folder = root / category
    return {
        "train": training_images(folder, _GOOD),
        "test": require_masks(labeled_images(folder, good=_GOOD)),
    }


class Btad(PublishedDatasetBuilder):
    """A category of BTAD."""

    VERSION = tfds.core.Version("1.0.0")
    dataset = PublishedDataset(
        title="BTAD",
        categories=("01", "02", "03"),
        archive=Archive(
            url="https://avires.dimi.uniud.it/papers/btad/btad.zip",
            sha256="461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
            page="https://github.com/pankajmishra000/VT-ADL",
        ),
        list_examples=list_examples,
        license="CC BY-SA 4.0",
        citation=_CITATION,
    )
