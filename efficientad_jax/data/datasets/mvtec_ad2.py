"""MVTec AD 2: 8 categories of scenes under several lightings, as a tensorflow-datasets builder.

ROOT/CATEGORY/train/good/*.png
ROOT/CATEGORY/validation/good/*.png
ROOT/CATEGORY/test_public/good/*.png and test_public/bad/*.png
ROOT/CATEGORY/test_public/ground_truth/bad/STEM_mask.png

The two private test sets, `test_private` and `test_private_mixed`, come without labels and
are left out; https://benchmark.mvtec.com evaluates on them.
License of the images: CC BY-NC-SA 4.0.
"""

from pathlib import Path

import tensorflow_datasets as tfds

from efficientad_jax.data.datasets.archive import Archive
from efficientad_jax.data.datasets.builder import PublishedDataset, PublishedDatasetBuilder
from efficientad_jax.data.datasets.layout import good_images, labeled_images, require_masks
from efficientad_jax.data.examples import Example

_CITATION = """
@article{HecklerKram2025,
  author  = {Heckler-Kram, Lars and Neudeck, Jan-Hendrik and Scheler, Ulla and K{\\"o}nig, Rebecca
             and Steger, Carsten},
  title   = {The {MVTec} {AD} 2 Dataset: Advanced Scenarios for Unsupervised Anomaly Detection},
  journal = {arXiv preprint arXiv:2503.21622},
  year    = {2025}
}
"""


def list_examples(root: Path, category: str) -> dict[str, list[Example]]:
    """The examples of a category by split; 'test' is the public test set.

    Raises:
      InputError: a folder or a mask is missing, or a mask belongs to no image.
    """
    folder = root / category
    return {
        "train": good_images(folder, "train"),
        "validation": good_images(folder, "validation"),
        "test": require_masks(labeled_images(folder, "test_public", "test_public/ground_truth")),
    }


class MvtecAd2(PublishedDatasetBuilder):
    """A category of MVTec AD 2."""

    VERSION = tfds.core.Version("1.0.0")
    dataset = PublishedDataset(
        title="MVTec AD 2",
        categories=(
            "can",
            "fabric",
            "fruit_jelly",
            "rice",
            "sheet_metal",
            "vial",
            "wallplugs",
            "walnuts",
        ),
        archive=Archive(
            url="https://www.mydrive.ch/shares/150997/701c90d3aea6588f404936e32a674602/download/"
            "466712769-1743429042/mvtec_ad_2.tar.gz",
            sha256="c0ded99ef32bfc8e352d52beb44515e5b292b8598cb963aadfa91ca0763505e4",
            page="https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
        ),
        list_examples=list_examples,
        license="CC BY-NC-SA 4.0",
        citation=_CITATION,
    )
