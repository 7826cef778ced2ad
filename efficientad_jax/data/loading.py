"""Datasets as arrays: read by grain, decoded and resized once."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Bool, Int, UInt8

from efficientad_jax.config import Config
from efficientad_jax.data.decoding import decode_image, decode_mask, resize_image
from efficientad_jax.errors import InputError

_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)


class ImageSet(NamedTuple):
    """Images of one split, ordered by name.

    Attributes:
      images: RGB, resized to the networks' input size.
      labels: 0 for normal, 1 for anomalous.
      names: unique in the dataset, such as `test/crack/017.png`.
      defects: kinds of defect, 'good' for none.
      masks: of the defects at the images' original sizes, None without one.
      sizes: original height and width of each image.
      regions: the defects of each image one by one: a mask and the area in pixels that has to be
        found of it (see `data/saturation.py`); None for a dataset that does not define such areas.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    labels: Int[np.ndarray, " n"]
    names: list[str]
    defects: list[str]
    masks: list[Bool[np.ndarray, "_h _w"] | None]
    sizes: list[tuple[int, int]]
    regions: list[list[tuple[Bool[np.ndarray, "_h _w"], float]]] | None = None


class Dataset(NamedTuple):
    """Images to train on, to calibrate with and to test with; no image is in two of them."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet


def load_dataset(
    name: str,
    category: str,
    root: str,
    data_dir: str,
    image_size: tuple[int, int],
    validation_fraction: float,
    seed: int,
) -> Dataset:
    """Prepares a dataset with tensorflow-datasets, unless it is prepared, and loads it.

    Args:
      name: 'mvtec_ad', 'mvtec_loco', 'mvtec_ad2', 'visa', 'btad' or 'elpv', or 'folder' for a
        folder in MVTec AD's layout or of good images alone, which leaves none to test with.
      category: of the dataset; for a folder, a folder inside `root` or ''.
      root: the folder; of a benchmark an extracted folder, an archive, or '' to download it; not
        read for 'elpv'.
      data_dir: where prepared datasets are kept, '' for tensorflow-datasets' own folder.
      image_size: height and width that images are resized to.
      validation_fraction: part of the training images that is held out, where the dataset has
        no validation images of its own.
      seed: decides which are held out.

    Raises:
      InputError: dataset, category, a folder or an image cannot be used.
    """
    # Slow to import, and needed for nothing else.
    from efficientad_jax.data.prepare import write_dataset

    builder = _builder(name, category, root, data_dir or None)
    write_dataset(builder)
    splits = {split: _load_split(builder, split, image_size) for split in builder.info.splits}
    train = splits["train"]
    test = splits.get("test", _take(train, np.arange(0)))
    if "validation" in splits:
        return Dataset(train, splits["validation"], test)
    train, validation = _hold_out(train, validation_fraction, seed)
    return Dataset(train, validation, test)


def load_configured_dataset(config: Config) -> Dataset:
    """The dataset that a configuration names, at the model's input size.

    Raises:
      InputError: it cannot be loaded.
    """
    return load_dataset(
        config.dataset.name,
        config.category,
        config.dataset.root,
        config.dataset.data_dir,
        config.model.input_size,
        config.dataset.validation_fraction,
        config.seed,
    )


def categories_of(name: str, root: str) -> list[str]:
    """The categories of a dataset; of a folder that is not divided into any, `['']`.

    Raises:
      InputError: there is no such dataset, or no such folder.
    """
    from efficientad_jax.data.datasets import elpv, folder

    benchmarks = _benchmarks()
    if name in benchmarks:
        return list(benchmarks[name].dataset.categories)
    if name == "elpv":
        return list(elpv.CATEGORIES)
    if name == "folder":
        return folder.categories_in(root)
    raise _no_dataset(name)


def load_images(paths: Sequence[Path], image_size: tuple[int, int]) -> UInt8[np.ndarray, "n h w 3"]:
    """Decodes and resizes image files.

    Raises:
      InputError: one cannot be decoded; it is named.
    """
    dataset = grain.MapDataset.source(list(paths)).map(partial(_load_file, size=image_size))
    return np.stack(list(dataset.to_iter_dataset(_READ)))


def _builder(name: str, category: str, root: str, data_dir: str | None) -> Any:
    from efficientad_jax.data.datasets import elpv, folder

    benchmarks = _benchmarks()
    if name in benchmarks:
        return benchmarks[name](category=category, root=root, data_dir=data_dir)
    if name == "elpv":
        if category not in elpv.CATEGORIES:
            raise InputError(
                f"category {category!r}: no such category of elpv, "
                f"expected one of: {', '.join(elpv.CATEGORIES)}"
            )
        return elpv.Elpv(config=category, data_dir=data_dir)
    if name == "folder":
        return folder.MvtecFolder(root=folder.resolve_category(root, category), data_dir=data_dir)
    raise _no_dataset(name)


def _benchmarks() -> dict[str, Any]:
    from efficientad_jax.data.datasets import btad, mvtec_ad, mvtec_ad2, mvtec_loco, visa

    return {
        "mvtec_ad": mvtec_ad.MvtecAd,
        "mvtec_loco": mvtec_loco.MvtecLoco,
        "mvtec_ad2": mvtec_ad2.MvtecAd2,
        "visa": visa.Visa,
        "btad": btad.Btad,
    }


def _no_dataset(name: str) -> InputError:
    known = ", ".join([*_benchmarks(), "elpv", "folder"])
    return InputError(f"dataset {name!r}: no such dataset, expected one of: {known}")


def _load_file(path: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    return resize_image(decode_image(path), *size)


def _load_split(builder: Any, split: str, size: tuple[int, int]) -> ImageSet:
    from efficientad_jax.data.examples import StoredBytes

    stored = StoredBytes()
    source = builder.as_data_source(split, decoders={"image": stored, "masks": stored})
    dataset = grain.MapDataset.source(source).map(partial(_decode_example, size=size))
    examples = sorted(dataset.to_iter_dataset(_READ), key=lambda example: example["name"])
    return ImageSet(
        images=np.stack([example["image"] for example in examples]),
        labels=np.array([example["label"] for example in examples], np.int64),
        names=[example["name"] for example in examples],
        defects=[example["defect"] for example in examples],
        masks=[example["mask"] for example in examples],
        sizes=[example["size"] for example in examples],
        regions=(
            [example["regions"] for example in examples]
            if "saturation_areas" in builder.info.features
            else None
        ),
    )


def _decode_example(example: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    name = example["name"].decode()
    image = decode_image(example["image"], name)
    masks = [decode_mask(mask, name) for mask in example["masks"]]
    areas = example.get("saturation_areas", ())
    return {
        "image": resize_image(image, *size),
        "label": int(example["label"]),
        "name": name,
        "defect": example["defect"].decode(),
        # A single mask is also the union, and held once.
        "mask": np.any(masks, axis=0) if len(masks) > 1 else next(iter(masks), None),
        "size": image.shape[:2],
        "regions": [(mask, float(area)) for mask, area in zip(masks, areas, strict=False)],
    }


def _hold_out(images: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Splits off a random part: at least one image goes, at least one stays."""
    count = len(images.names)
    held_out = min(max(1, round(fraction * count)), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return _take(images, np.sort(order[held_out:])), _take(images, np.sort(order[:held_out]))


def _take(images: ImageSet, chosen: Int[np.ndarray, " m"]) -> ImageSet:
    return ImageSet(
        images.images[chosen],
        images.labels[chosen],
        *([field[i] for i in chosen] for field in images[2:-1]),
        regions=None if images.regions is None else [images.regions[i] for i in chosen],
    )
