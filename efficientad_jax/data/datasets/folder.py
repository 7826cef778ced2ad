"""Any folder in MVTec AD's layout, or of only good images. It is read without a copy.

ROOT/[CATEGORY/]train/good/*
ROOT/[CATEGORY/]validation/good/*               optional
ROOT/[CATEGORY/]test/good/* and test/DEFECT/*       optional
ROOT/[CATEGORY/]ground_truth/DEFECT/STEM_mask.png   optional

or ROOT/* without folders of images in it: all of them are good, and none are test images.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from efficientad_jax.data.datasets.layout import (
    good_images,
    labeled_images,
    training_images,
    unsorted_images,
)
from efficientad_jax.data.examples import GOOD, Example
from efficientad_jax.data.files import composed, holds_images, is_data_folder
from efficientad_jax.errors import InputError, printable

_log = logging.getLogger(__name__)

_FOLDERS = ("train", "validation", "test", "ground_truth")


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
    same = [name for name in known if composed(name) == composed(category)]
    if not same:
        raise InputError(
            f"category {category!r}: no such category in {folder}, "
            f"expected one of: {', '.join(known) or '(none there)'}"
        )
    return folder / (category if category in same else same[0])


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
    if holds_images(root / "validation"):
        splits["validation"] = good_images(root, "validation")
    # Masks without test images are an error.
    if holds_images(root / "test") or holds_images(root / "ground_truth"):
        splits["test"] = labeled_images(root)
    _report_unread(root, splits)
    return splits


def _report_unread(root: Path, splits: Mapping[str, Sequence[Example]]) -> None:
    """Warns of folders of images that have no meaning, and of a test without good images."""
    expected = {root: _FOLDERS, root / "train": (GOOD,), root / "validation": (GOOD,)}
    for parent, known in expected.items():
        for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
            is_known = folder.name in known or (known == (GOOD,) and folder.name.casefold() == GOOD)
            if not is_known and is_data_folder(folder.name) and holds_images(folder):
                _log.warning(
                    "image folder %s: is not used, expected in %s only: %s",
                    printable(str(folder)),
                    printable(str(parent)),
                    ", ".join(known),
                )
    defects = sorted({example.defect for example in splits.get("test", ())})
    if defects and GOOD not in defects:
        _log.warning(
            "test folder %s: no folder %r in it, so that all images count as anomalous; found %s",
            printable(str(root / "test")),
            GOOD,
            printable(", ".join(defects)),
        )
