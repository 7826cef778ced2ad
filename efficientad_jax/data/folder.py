"""Any folder in MVTec AD's layout, as a tensorflow-datasets builder.

ROOT/[CATEGORY/]train/good/*
ROOT/[CATEGORY/]validation/good/*               optional
ROOT/[CATEGORY/]test/good/* and test/DEFECT/*
ROOT/[CATEGORY/]ground_truth/DEFECT/STEM_mask.png   optional
"""

import hashlib
import re
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from efficientad_jax.data.examples import FEATURES, GOOD, Example, generate
from efficientad_jax.data.files import list_images
from efficientad_jax.errors import InputError

_FEWEST_TRAINING_IMAGES = 2


class MvtecFolder(tfds.core.GeneratorBasedBuilder):
    """The images under one folder.

    The prepared copy is named after the folder and a fingerprint of its listing (names, sizes,
    times of change), so that it cannot be older than what it copies.
    """

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = tfds.core.Path(__file__).parent

    def __init__(self, *, root: Path, data_dir: str | None = None) -> None:
        """Lists the folder.

        Args:
          root: a folder with `train/good` in it.
          data_dir: where prepared copies go, tensorflow-datasets' own folder unless given.

        Raises:
          InputError: the folder does not hold what it should.
        """
        self._examples = list_examples(root)
        label = re.sub(r"\W+", "_", root.resolve().name) or "root"
        config = tfds.core.BuilderConfig(
            name=f"{label}-{_fingerprint(self._examples)}",
            description=f"Images of a folder named {root.resolve().name}",
        )
        verbosity = logging.get_verbosity()
        # tensorflow-datasets warns of a configuration that its class does not list.
        logging.set_verbosity(logging.ERROR)
        try:
            super().__init__(config=config, data_dir=data_dir)
        finally:
            logging.set_verbosity(verbosity)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(FEATURES),
            description="A folder of images in MVTec AD's layout.",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # everything is in the folder
        return {split: generate(examples) for split, examples in self._examples.items()}

    def _generate_examples(self, **kwargs):
        raise AssertionError("each split brings its own generator")


def resolve_category(root: str, category: str) -> Path:
    """The folder of a category, or `root` itself for an empty one.

    Raises:
      InputError: there is no such folder; it lists the categories that are there.
    """
    if not root:
        raise InputError("config.dataset.root is empty: give the folder of the images")
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(f"dataset folder {folder}: no such folder")
    known = sorted(path.parent.name for path in folder.glob("*/train") if path.is_dir())
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


def list_examples(root: Path) -> dict[str, list[Example]]:
    """The examples of each split: 'train', 'test' and, where there is one, 'validation'.

    Raises:
      InputError: a folder is missing or empty, there are fewer than 2 training images, or masks
        and images do not belong together one to one.
    """
    if not root.is_dir():
        raise InputError(f"dataset folder {root}: no such folder")
    splits = {"train": _good(root, "train")}
    if len(splits["train"]) < _FEWEST_TRAINING_IMAGES:
        raise InputError(
            f"dataset folder {root / 'train' / GOOD}: {len(splits['train'])} image, expected at "
            f"least {_FEWEST_TRAINING_IMAGES}: one to train on and one to calibrate with"
        )
    if (root / "validation").is_dir():
        splits["validation"] = _good(root, "validation")
    splits["test"] = _test(root)
    return splits


def _good(root: Path, split: str) -> list[Example]:
    return [
        Example(path, path.relative_to(root).as_posix(), GOOD)
        for path in list_images(root / split / GOOD)
    ]


def _test(root: Path) -> list[Example]:
    folder = root / "test"
    masks = _masks(root)
    taken = {}
    examples = []
    for path in list_images(folder):
        if path.parent == folder:
            raise InputError(
                f"image {path}: lies in 'test' itself, expected test/good or test/DEFECT"
            )
        place = path.relative_to(folder).with_suffix("")
        mask = masks.get(place)
        if mask is not None and place in taken:
            raise InputError(
                f"mask {mask}: could belong to {taken[place]} or to {path}; rename one of the two"
            )
        taken[place] = path
        name = path.relative_to(root).as_posix()
        examples.append(Example(path, name, place.parts[0], mask))
    orphans = sorted(masks.keys() - taken.keys())
    if orphans:
        raise InputError(
            f"mask {masks[orphans[0]]}: belongs to no image, expected one named "
            f"{folder / orphans[0]}.*"
        )
    return examples


def _masks(root: Path) -> dict[Path, Path]:
    """Masks by `DEFECT/STEM` of their image; `STEM.png` is taken as well as `STEM_mask.png`."""
    folder = root / "ground_truth"
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


def _fingerprint(splits: dict[str, list[Example]]) -> str:
    digest = hashlib.sha256()
    for split, examples in splits.items():
        for example in examples:
            for path in filter(None, (example.image, example.mask)):
                stat = path.stat()
                digest.update(repr((split, str(path.resolve()), stat.st_size)).encode())
                digest.update(str(stat.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
