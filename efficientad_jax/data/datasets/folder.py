"""Any folder in MVTec AD's layout, or of good images alone, as a tensorflow-datasets builder.

ROOT/[CATEGORY/]train/good/*
ROOT/[CATEGORY/]validation/good/*               optional
ROOT/[CATEGORY/]test/good/* and test/DEFECT/*
ROOT/[CATEGORY/]ground_truth/DEFECT/STEM_mask.png   optional

or ROOT/* without folders of images in it: all of them good, none to test with.
"""

import re
from pathlib import Path

import tensorflow_datasets as tfds

from efficientad_jax.data.datasets.builder import ConfiguredBuilder, fingerprint
from efficientad_jax.data.datasets.layout import (
    good_images,
    labeled_images,
    training_images,
    unsorted_images,
)
from efficientad_jax.data.examples import FEATURES, Example, generate
from efficientad_jax.errors import InputError


class MvtecFolder(ConfiguredBuilder):
    """The images under one folder.

    The prepared copy is named after the folder and a fingerprint of its listing (names, sizes,
    times of change), so that it cannot be older than what it copies.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, root: Path, data_dir: str | None = None) -> None:
        """Lists the folder.

        Args:
          root: a folder with `train/good` in it, or with images.
          data_dir: where prepared copies go, tensorflow-datasets' own folder unless given.

        Raises:
          InputError: the folder does not hold what it should.
        """
        self._examples = list_examples(root)
        label = re.sub(r"\W+", "_", root.resolve().name) or "root"
        super().__init__(
            label=f"{label}-{fingerprint(self._examples)}",
            description=f"Images of a folder named {root.resolve().name}",
            data_dir=data_dir,
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(FEATURES),
            description="A folder of images in MVTec AD's layout.",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # everything is in the folder
        return {split: generate(examples) for split, examples in self._examples.items()}


def categories_in(root: str) -> list[str]:
    """The folders inside `root` that hold training images; `['']` where it has none of these.

    Raises:
      InputError: there is no such folder.
    """
    folder = _existing(root)
    return [""] if (folder / "train").is_dir() else _categories(folder) or [""]


def resolve_category(root: str, category: str) -> Path:
    """The folder of a category, or `root` itself for an empty one.

    Raises:
      InputError: there is no such folder; it lists the categories that are there.
    """
    folder = _existing(root)
    known = _categories(folder)
    if not category:
        if known and not (folder / "train").is_dir():
            raise InputError(
                f"dataset folder {folder}: no folder 'train' in it, expected one, or a category "
                f"of: {', '.join(known)}"
            )
        return folder
    if category not in known:
        raise InputError(
            f"category {category!r}: no such category in {folder}, "
            f"expected one of: {', '.join(known) or '(none there)'}"
        )
    return folder / category


def _existing(root: str) -> Path:
    if not root:
        raise InputError("config.dataset.root is empty: give the folder of the images")
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(f"dataset folder {folder}: no such folder")
    return folder


def _categories(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/train") if path.is_dir())


def list_examples(root: Path) -> dict[str, list[Example]]:
    """The examples of each split: 'train' and, where there are any, 'test' and 'validation'.

    Raises:
      InputError: a folder is missing or empty, there are fewer than 2 training images, or masks
        and images do not belong together one to one.
    """
    if not root.is_dir():
        raise InputError(f"dataset folder {root}: no such folder")
    if not (root / "train").is_dir() and not (root / "test").is_dir():
        return {"train": unsorted_images(root)}
    splits = {"train": training_images(root)}
    if (root / "validation").is_dir():
        splits["validation"] = good_images(root, "validation")
    splits["test"] = labeled_images(root)
    return splits
