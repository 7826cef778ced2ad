"""Any folder in MVTec AD's layout, or of only good images. It is read without a copy.

ROOT/[CATEGORY/]train/good/*
ROOT/[CATEGORY/]validation/good/*               optional
ROOT/[CATEGORY/]test/good/* and test/DEFECT/*       optional
ROOT/[CATEGORY/]ground_truth/DEFECT/STEM_mask.png   optional

or ROOT/* without folders of images in it: all of them are good, and none are test images.
"""

from pathlib import Path

from efficientad_jax.data.datasets.layout import (
    good_images,
    labeled_images,
    training_images,
    unsorted_images,
)
from efficientad_jax.data.examples import Example
from efficientad_jax.data.files import find_images, is_data_folder
from efficientad_jax.errors import InputError


def categories_in(root: str) -> list[str]:
    """The folders inside `root` that hold training images; `['']` if there are none.

    Raises:
      InputError: there is no such folder.
    """
    folder = _existing(root)
    return [""] if (folder / "train").is_dir() else _categories(folder) or [""]


def resolve_category(root: str, category: str) -> Path:
    """The folder of a category, or `root` itself for an empty one.

    Raises:
      InputError: there is no such folder; the message lists the existing categories.
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
    found = (path.parent.name for path in folder.glob("*/train") if path.is_dir())
    return sorted(filter(is_data_folder, found))


def list_examples(root: Path) -> dict[str, list[Example]]:
    """Lists the examples of each split: 'train' and, where they exist, 'validation' and 'test'.

    Raises:
      InputError: the folder of training images is missing or empty, there are fewer than 2 training
        images, a mask belongs to no image or to several, or an image has several masks.
    """
    if not root.is_dir():
        raise InputError(f"dataset folder {root}: no such folder")
    if not (root / "train").is_dir() and not (root / "test").is_dir():
        return {"train": unsorted_images(root)}
    splits = {"train": training_images(root)}
    if _holds_images(root / "validation"):
        splits["validation"] = good_images(root, "validation")
    # Masks without test images are an error.
    if _holds_images(root / "test") or _holds_images(root / "ground_truth"):
        splits["test"] = labeled_images(root)
    return splits


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and bool(find_images(folder))
