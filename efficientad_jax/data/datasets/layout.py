"""Lists the images of a folder in MVTec AD's layout, with their labels and masks.

ROOT/train/good/*
ROOT/validation/good/*
ROOT/test/good/* and ROOT/test/DEFECT/*
ROOT/ground_truth/DEFECT/STEM_mask.png

MVTec AD 2 and BTAD use other folder names; MVTec LOCO AD has a folder of masks per image.
"""

from pathlib import Path

from efficientad_jax.data.examples import GOOD, Example
from efficientad_jax.data.files import composed, is_data_folder, is_image, list_images
from efficientad_jax.errors import InputError

_FEWEST_TRAINING_IMAGES = 2


def good_images(root: Path, split: str, good: str = GOOD) -> list[Example]:
    """The images of `ROOT/SPLIT/good`, all of them normal. Upper and lower case count as the same.

    Raises:
      InputError: the folder does not exist or holds no images.
    """
    folder = _folder_of_good_images(root / split, good)
    return [Example(path, path.relative_to(root).as_posix(), GOOD) for path in list_images(folder)]


def _folder_of_good_images(parent: Path, good: str) -> Path:
    """The folder `good` in `parent`, in upper or lower case."""
    folder = parent / good
    if folder.is_dir() or not parent.is_dir():
        return folder
    children = sorted(parent.iterdir())
    folders = [path for path in children if path.is_dir() and is_data_folder(path.name)]
    for path in folders:
        if path.name.casefold() == good:
            return path
    images = ["images"] if any(map(is_image, children)) else []
    raise InputError(
        f"image folder {folder}: no such folder, found in {parent}: "
        f"{', '.join([*images, *(path.name for path in folders)]) or 'nothing'}; move the good "
        f"images to a folder {good!r} there"
    )


def training_images(root: Path, good: str = GOOD) -> list[Example]:
    """The images of `ROOT/train/good`, for training and, held out, for validation.

    Raises:
      InputError: there are fewer than 2.
    """
    return _enough_to_train(root / "train" / good, good_images(root, "train", good))


def unsorted_images(root: Path) -> list[Example]:
    """The images of a folder without subfolders, all normal: for training and validation.

    Raises:
      InputError: there are fewer than 2, or there are images in subfolders.
    """
    paths = list_images(root)
    for path in paths:
        if path.parent != root:
            raise InputError(
                f"image {path}: lies in a folder of {root}, expected good images in {root} itself "
                f"only, or good images in {root / 'train' / GOOD}"
            )
    return _enough_to_train(root, [Example(path, path.name, GOOD) for path in paths])


def labeled_images(
    root: Path, test: str = "test", ground_truth: str | None = "ground_truth", *, good: str = GOOD
) -> list[Example]:
    """The images of `ROOT/TEST`, normal and anomalous, with their masks where these exist.

    Args:
      root: folder of a category.
      test: subfolder of the images.
      ground_truth: subfolder of the masks, which may lie inside `test`; None ignores masks.
      good: folder of the normal images inside `test`.

    Raises:
      InputError: a folder is empty, or masks and images do not match one to one.
    """
    folder = root / test
    masks_folder = None if ground_truth is None else root / ground_truth
    masks = {} if masks_folder is None else _masks(masks_folder)
    images: dict[Path, Path] = {}
    examples = []
    for path in list_images(folder):
        if masks_folder is not None and path.is_relative_to(masks_folder):
            continue
        if path.parent == folder:
            raise InputError(
                f"image {path}: lies in {test!r} itself, expected {test}/{good} or {test}/DEFECT"
            )
        stem = Path(composed(str(path.relative_to(folder).with_suffix(""))))
        mask = masks.get(stem)
        if mask is not None and stem in images:
            raise InputError(
                f"mask {mask}: could belong to {images[stem]} or to {path}, expected one image; "
                "rename one of the two"
            )
        images[stem] = path
        name = path.relative_to(root).as_posix()
        defect = GOOD if stem.parts[0].casefold() == good else path.relative_to(folder).parts[0]
        examples.append(Example(path, name, defect, () if mask is None else (mask,)))
    orphans = sorted(masks.keys() - images.keys())
    if orphans:
        raise InputError(
            f"mask {masks[orphans[0]]}: belongs to no image, expected one named "
            f"{folder / orphans[0]}.*"
        )
    return examples


def require_masks(examples: list[Example]) -> list[Example]:
    """Returns the examples if every anomalous image has a mask.

    Raises:
      InputError: an anomalous image has no mask.
    """
    for example in examples:
        if example.defect != GOOD and not example.masks:
            raise InputError(
                f"image {example.image}: has no mask, expected one as the dataset has for every "
                "anomalous image; the copy is incomplete: download the dataset again"
            )
    return examples


def _enough_to_train(folder: Path, examples: list[Example]) -> list[Example]:
    if len(examples) < _FEWEST_TRAINING_IMAGES:
        raise InputError(
            f"dataset folder {folder}: {len(examples)} image, expected at "
            f"least {_FEWEST_TRAINING_IMAGES}: one for training and one for validation"
        )
    return examples


def _masks(folder: Path) -> dict[Path, Path]:
    """The mask files by `DEFECT/STEM` of their image: `STEM_mask.png` or `STEM.png`."""
    if not folder.is_dir():
        return {}
    masks = {}
    for path in list_images(folder):
        stem = path.parent.relative_to(folder) / path.stem.removesuffix("_mask")
        stem = Path(composed(str(stem)))
        if stem in masks:
            raise InputError(
                f"mask {path}: is for the same image as {masks[stem]}, expected one mask per "
                "image; delete one of the two"
            )
        masks[stem] = path
    return masks
