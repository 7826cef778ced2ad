"""MVTec AD: 15 categories of objects and textures, as a tensorflow-datasets builder.

ROOT/CATEGORY/train/good/*.png
ROOT/CATEGORY/test/good/*.png and test/DEFECT/*.png
ROOT/CATEGORY/ground_truth/DEFECT/STEM_mask.png

License of the images: CC BY-NC-SA 4.0.
"""

from pathlib import Path

import tensorflow_datasets as tfds

from efficientad_jax.data.datasets.archive import Archive
from efficientad_jax.data.datasets.builder import PublishedDataset, PublishedDatasetBuilder
from efficientad_jax.data.datasets.layout import labeled_images, require_masks, training_images
from efficientad_jax.data.examples import Example

_CITATION = """
@article{Bergmann2021,
  author  = {Bergmann, Paul and Batzner, Kilian and Fauser, Michael and Sattlegger, David and
             Steger, Carsten},
  title   = {The {MVTec} Anomaly Detection Dataset: A Comprehensive Real-World Dataset for
             Unsupervised Anomaly Detection},
  journal = {International Journal of Computer Vision},
  volume  = {129},
  number  = {4},
  pages   = {1038--1059},
  year    = {2021}
}
"""


def list_examples(root: Path, category: str) -> dict[str, list[Example]]:
    """The examples of a category by split.

    Raises:
      InputError: a folder or a mask is missing, or a mask belongs to no image.
    """
    folder = root / category
    return {"train": training_images(folder), "test": require_masks(labeled_images(folder))}


class MvtecAd(PublishedDatasetBuilder):
    """A category of MVTec AD."""

    VERSION = tfds.core.Version("1.0.0")
    dataset = PublishedDataset(
        title="MVTec AD",
        categories=(
            "bottle",
            "cable",
            "capsule",
            "carpet",
            "grid",
            "hazelnut",
            "leather",
            "metal_nut",
            "pill",
            "screw",
            "tile",
            "toothbrush",
            "transistor",
            "wood",
            "zipper",
        ),
        archive=Archive(
            url="https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/"
            "420938113-1629960298/mvtec_anomaly_detection.tar.xz",
            sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
            page="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        ),
        list_examples=list_examples,
        license="CC BY-NC-SA 4.0",
        citation=_CITATION,
    )
