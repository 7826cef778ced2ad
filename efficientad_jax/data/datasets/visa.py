"""VisA: photographs of boards, capsules, food and more, as a tensorflow-datasets builder.

ROOT/split_csv/1cls.csv                        object,split,label,image,mask
ROOT/CATEGORY/Data/Images/Normal/*.JPG
ROOT/CATEGORY/Data/Images/Anomaly/*.JPG
ROOT/CATEGORY/Data/Masks/Anomaly/STEM.png

Mirrors in MVTec AD's layout are read too: CATEGORY/train/good, CATEGORY/test/{good,DEFECT} and
CATEGORY/ground_truth/DEFECT.

The one-class split is used. The pixel values of a mask, from 1, stand for kinds of defect, which
are treated alike. License of the images: CC BY 4.0.
"""

import csv
from pathlib import Path

import tensorflow_datasets as tfds

from efficientad_jax.data.datasets.archive import Archive
from efficientad_jax.data.datasets.builder import PublishedDataset, PublishedDatasetBuilder
from efficientad_jax.data.datasets.layout import (
    labeled_images,
    require_masks,
    training_images,
)
from efficientad_jax.data.examples import GOOD, Example
from efficientad_jax.errors import InputError

_COLUMNS = ("object", "split", "label", "image", "mask")
_DEFECTS = {"normal": GOOD, "anomaly": "anomaly"}

_CITATION = """
@inproceedings{Zou2022,
  author    = {Zou, Yang and Jeong, Jongheon and Pemula, Latha and Zhang, Dongqing and
               Dabeer, Onkar},
  title     = {{SPot-the-Difference} Self-Supervised Pre-training for Anomaly Detection and
               Segmentation},
  booktitle = {European Conference on Computer Vision (ECCV)},
  pages     = {392--408},
  year      = {2022}
}
"""


def list_examples(root: Path, category: str) -> dict[str, list[Example]]:
    """The examples of a category by split.

    Raises:
      InputError: the table or a file that it lists is missing, or the table has another format.
    """
    table = root / "split_csv" / "1cls.csv"
    if not table.is_file() and (root / category / "train").is_dir():
        folder = root / category
        return {"train": training_images(folder), "test": require_masks(labeled_images(folder))}
    if not table.is_file():
        raise InputError(
            f"dataset table {table}: no such file, expected VisA's one-class split, or the folders "
            f"{category}/train and {category}/test of a copy in MVTec AD's layout"
        )
    splits: dict[str, list[Example]] = {"train": [], "test": []}
    with table.open(newline="") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames is None or not set(_COLUMNS) <= set(rows.fieldnames):
            raise InputError(
                f"dataset table {table}: columns {rows.fieldnames}, expected {', '.join(_COLUMNS)}"
            )
        for row in rows:
            if row["object"] != category:
                continue
            if row["split"] not in splits or row["label"] not in _DEFECTS:
                raise InputError(
                    f"dataset table {table}: line {rows.line_num} has split {row['split']!r} and "
                    f"label {row['label']!r}, expected train or test and normal or anomaly"
                )
            splits[row["split"]].append(_example(root, category, row))
    train, test = splits["train"], splits["test"]
    if not train or not test or any(example.defect != GOOD for example in train):
        raise InputError(
            f"dataset table {table}: {len(train)} training and {len(test)} test images of "
            f"{category}, expected at least one of each, and only normal training images"
        )
    return {"train": train, "test": require_masks(test)}


def _example(root: Path, category: str, row: dict[str, str]) -> Example:
    image = root / row["image"]
    masks = (root / row["mask"],) if row["mask"] else ()
    for path in (image, *masks):
        if not path.is_file():
            raise InputError(f"image {path}: no such file, although VisA's 1cls.csv lists it")
    name = image.relative_to(root / category).as_posix()
    return Example(image, name, _DEFECTS[row["label"]], masks)


class Visa(PublishedDatasetBuilder):
    """A category of VisA."""

    VERSION = tfds.core.Version("1.0.0")
    dataset = PublishedDataset(
        title="VisA",
        categories=(
            "candle",
            "capsules",
            "cashew",
            "chewinggum",
            "fryum",
            "macaroni1",
            "macaroni2",
            "pcb1",
            "pcb2",
            "pcb3",
            "pcb4",
            "pipe_fryum",
        ),
        archive=Archive(
            url="https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
            sha256="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
            page="https://github.com/amazon-science/spot-diff",
        ),
        list_examples=list_examples,
        license="CC BY 4.0",
        citation=_CITATION,
    )
