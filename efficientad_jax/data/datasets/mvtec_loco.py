"""MVTec LOCO AD: structural and logical anomalies, 5 categories, as a tensorflow-datasets builder.

ROOT/CATEGORY/train/good/*.png
ROOT/CATEGORY/validation/good/*.png
ROOT/CATEGORY/test/good/*.png, test/logical_anomalies/*.png and test/structural_anomalies/*.png
ROOT/CATEGORY/ground_truth/DEFECT/STEM/000.png, 001.png ...
ROOT/CATEGORY/defects_config.json

Each mask marks one defect, by a pixel value that stands for its kind. `defects_config.json` holds
the saturation threshold of each kind (see `data/saturation.py`).
License of the images: CC BY-NC-SA 4.0.
"""

from pathlib import Path

import tensorflow_datasets as tfds

from efficientad_jax.data.datasets.archive import Archive
from efficientad_jax.data.datasets.builder import PublishedDataset, PublishedDatasetBuilder
from efficientad_jax.data.datasets.layout import good_images, labeled_images, require_masks
from efficientad_jax.data.examples import Example
from efficientad_jax.data.files import list_images
from efficientad_jax.data.saturation import read_saturations
from efficientad_jax.errors import InputError

_CITATION = """
@article{Bergmann2022,
  author  = {Bergmann, Paul and Batzner, Kilian and Fauser, Michael and Sattlegger, David and
             Steger, Carsten},
  title   = {Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and
             Localization},
  journal = {International Journal of Computer Vision},
  volume  = {130},
  pages   = {947--969},
  year    = {2022}
}
"""


def list_examples(root: Path, category: str) -> dict[str, list[Example]]:
    """The examples of a category by split.

    Raises:
      InputError: a folder, a mask or `defects_config.json` is missing, or a mask belongs to no
        image.
    """
    folder = root / category
    saturations = read_saturations(folder / "defects_config.json")
    splits = {
        "train": good_images(folder, "train"),
        "validation": good_images(folder, "validation"),
        "test": require_masks(_test_images(folder)),
    }
    return {
        split: [example._replace(saturations=saturations) for example in examples]
        for split, examples in splits.items()
    }


def _test_images(folder: Path) -> list[Example]:
    masks: dict[Path, list[Path]] = {}
    for mask in list_images(folder / "ground_truth"):
        masks.setdefault(mask.parent, []).append(mask)
    examples = []
    for example in labeled_images(folder, ground_truth=None):
        stem = example.image.relative_to(folder / "test").with_suffix("")
        files = masks.pop(folder / "ground_truth" / stem, [])
        examples.append(example._replace(masks=tuple(files)))
    for orphans in masks.values():
        raise InputError(
            f"mask {orphans[0]}: belongs to no image, expected masks at "
            f"{folder / 'ground_truth'}/DEFECT/STEM/*"
        )
    return examples


class MvtecLoco(PublishedDatasetBuilder):
    """A category of MVTec LOCO AD."""

    VERSION = tfds.core.Version("1.0.0")
    dataset = PublishedDataset(
        title="MVTec LOCO AD",
        categories=(
            "breakfast_box",
            "juice_bottle",
            "pushpins",
            "screw_bag",
            "splicing_connectors",
        ),
        archive=Archive(
            url="https://www.mydrive.ch/shares/48237/1b9106ccdfbb09a0c414bd49fe44a14a/download/"
            "430647091-1646842701/mvtec_loco_anomaly_detection.tar.xz",
            sha256="9e7c84dba550fd2e59d8e9e231c929c45ba737b6b6a6d3814100f54d63aae687",
            page="https://www.mvtec.com/company/research/datasets/mvtec-loco",
        ),
        list_examples=list_examples,
        license="CC BY-NC-SA 4.0",
        citation=_CITATION,
        saturates=True,
    )
