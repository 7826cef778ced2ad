"""Folders in MVTec AD's layout: which image is what, and which mask belongs to it.

ROOT/train/good/*
ROOT/validation/good/*
ROOT/test/good/* and ROOT/test/DEFECT/*
ROOT/ground_truth/DEFECT/STEM_mask.png

MVTec AD 2 and BTAD name these folders otherwise, MVTec LOCO AD has a folder of masks an image.
"""

from pathlib import Path

from efficientad_jax.data.examples import GOOD, Example
from efficientad_jax.data.files import list_images
from efficientad_jax.errors import InputError

_FEWEST_TRAINING_IMAGES = 2


def good_images(root: Path, split: str, good: str = GOOD) -> list[Example]:
    """The images of `ROOT/SPLIT/good`.

    Raises:
      InputError: there are none.
    """
    return [
        Example(path, path.relative_to(root).as_posix(), GOOD)
        for path in list_images(root / split / good)
    ]


def training_images(root: Path, good: str = GOOD) -> list[Example]:
    """The images of `ROOT/train/good`, of which some are going to be held out.

    Raises:
      InputError: there are fewer than 2.
    """
    return _enough_to_train(root / "train" / good, good_images(root, "train", good))


def unsorted_images(root: Path) -> list[Example]:
    """The images that lie in `ROOT` itself, taken for good, of which some are going to be held out.

    Raises:
      InputError: there are fewer than 2, or others in folders of it.
    """
    paths = list_images(root)
    for path in paths:
        if path.parent != root:
            raise InputError(
                f"image {path}: lies in a folder of {root}, expected good images in {root} itself "
                f"and no others, or good ones in {root / 'train' / GOOD}"
            )
    return _enough_to_train(root, [Example(path, path.name, GOOD) for path in paths])


def labelled_images(
    root: Path, test: str = "test", ground_truth: str | None = "ground_truth", good: str = GOOD
) -> list[Example]:
    """The images of `ROOT/TEST`, good and defective, with their masks, which may be missing.

    Args:
      root: the folder of a category.
      test: folder of the images.
      ground_truth: folder of the masks, which may be inside `test`; None takes no masks.
      good: folder of the normal images in `test`.

    Raises:
      InputError: a folder is empty, or masks and images do not belong together one to one.
    """
    folder = root / test
    masks_folder = None if ground_truth is None else root / ground_truth
    masks = {} if masks_folder is None else _masks(masks_folder)
    taken = {}
    examples = []
    for path in list_images(folder):
        if masks_folder is not None and path.is_relative_to(masks_folder):
            continue
        if path.parent == folder:
            raise InputError(
                f"image {path}: lies in {test!r} itself, expected {test}/{good} or {test}/DEFECT"
            )
        place = path.relative_to(folder).with_suffix("")
        mask = masks.get(place)
        if mask is not None and place in taken:
            raise InputError(
                f"mask {mask}: could belong to {taken[place]} or to {path}; rename one of the two"
            )
        taken[place] = path
        name = path.relative_to(root).as_posix()
        defect = GOOD if place.parts[0] == good else place.parts[0]
        examples.append(Example(path, name, defect, () if mask is None else (mask,)))
    orphans = sorted(masks.keys() - taken.keys())
    if orphans:
        raise InputError(
            f"mask {masks[orphans[0]]}: belongs to no image, expected one named "
            f"{folder / orphans[0]}.*"
        )
    return examples


def require_masks(examples: list[Example]) -> list[Example]:
    """Returns the examples of a dataset that has a mask of every anomalous image.

    Raises:
      InputError: one lacks it.
    """
    for example in examples:
        if example.defect != GOOD and not example.masks:
            raise InputError(
                f"image {example.image}: has no mask, expected one as the dataset has for every "
                "anomalous image; the copy is incomplete"
            )
    return examples


def _enough_to_train(folder: Path, examples: list[Example]) -> list[Example]:
    if len(examples) < _FEWEST_TRAINING_IMAGES:
        raise InputError(
            f"dataset folder {folder}: {len(examples)} image, expected at "
            f"least {_FEWEST_TRAINING_IMAGES}: one to train on and one to calibrate with"
        )
    return examples


def _masks(folder: Path) -> dict[Path, Path]:
    """Masks by `DEFECT/STEM` of their image; `STEM.png` is taken as well as `STEM_mask.png`."""
    if not folder.is_dir():
        return {}
    masks = {}
    for path in list_images(folder):
        place = path.parent.relative_to(folder) / path.stem.removesuffix("_mask")
        if place in masks:
            raise InputError(
                f"mask {path}: is for the same image as {masks[place]}, expected one mask an image"
            )
        masks[place] = path
    return masks
