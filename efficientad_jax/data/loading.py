"""Datasets as arrays: read with grain, each image decoded and resized once."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Bool, Int, UInt8

from efficientad_jax.config import Config
from efficientad_jax.data.decoding import (
    WHITE_LEVEL,
    decode_image,
    decode_image_and_peak,
    decode_mask,
)
from efficientad_jax.data.examples import GOOD, Example, Framed, Reading, frame, read_files
from efficientad_jax.data.framing import (
    PLAIN,
    Framing,
    cut_out,
    network_input,
    stack_images,
)
from efficientad_jax.data.framing_file import (
    has_own_masks,
    list_own_masks,
    read_framing,
)
from efficientad_jax.errors import printable

_log = logging.getLogger(__name__)

# The largest values of cameras of 10, 12 and 14 bits.
_CAMERA_LIMITS = (1023, 4095, 16383)

_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)


class ImageSet(NamedTuple):
    """Images of one split, or only their region of interest, ordered by name.

    Attributes:
      images: RGB, resized to the networks' input size; ignored pixels are filled. Images that are
        cut into tiles keep their size, in the upper left corner of the largest.
      labels: 0 for normal, 1 for anomalous.
      names: unique in the dataset, such as `test/crack/017.png`.
      defects: kinds of defect, 'good' for none.
      masks: of the defects at the images' original sizes, None without one.
      sizes: original height and width of each image.
      regions: the defects of each image one by one: a mask and the area in pixels that has to be
        found of it (see `data/saturation.py`); None for a dataset that does not define such areas.
      own_masks: True on the pixels of `images` that each image's own mask ignores; None without
        such masks.
      ignored: the same at the images' original sizes, of test images; None of others.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    labels: Int[np.ndarray, " n"]
    names: list[str]
    defects: list[str]
    masks: list[Bool[np.ndarray, "_h _w"] | None]
    sizes: list[tuple[int, int]]
    regions: list[list[tuple[Bool[np.ndarray, "_h _w"], float]]] | None = None
    own_masks: Bool[np.ndarray, "n h w"] | None = None
    ignored: list[Bool[np.ndarray, "_h _w"]] | None = None


class Dataset(NamedTuple):
    """Images to train on, to calibrate with and to test with; no image is in two of them."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet


def load_dataset(
    name: str,
    category: str,
    root: str,
    *,
    data_dir: str,
    image_size: tuple[int, int],
    validation_fraction: float,
    seed: int,
    white_level: int = WHITE_LEVEL,
    framing: Framing = PLAIN,
    own_masks: Mapping[str, Path] | None = None,
    proportional: bool = False,
    chooses_fit: bool = False,
) -> Dataset:
    """Loads a dataset into memory.

    A folder is read as it is. Of any other dataset tensorflow-datasets first makes a copy in
    `data_dir`, unless it exists.

    Args:
      name: 'mvtec_ad', 'mvtec_loco', 'mvtec_ad2', 'visa', 'btad' or 'elpv', or 'folder' for a
        folder in MVTec AD's layout or of only good images, which has no test images.
      category: of the dataset; for a folder, a folder inside `root` or ''.
      root: the folder; of a published dataset an extracted folder, an archive, or '' to download
        it; not read for 'elpv'.
      data_dir: folder of the copies, '' for the folder of tensorflow-datasets; not read for
        'folder'.
      image_size: height and width that images are resized to, in pixels.
      validation_fraction: fraction of the training images that is held out, where the dataset has
        no validation images of its own; in [0, 1].
      seed: selects the images that are held out.
      white_level: see `decode_image`. If it is far above all values of the training images, a line
        in the log says so.
      framing: which part of each image counts, and how it becomes the networks' input.
      own_masks: of `list_own_masks`, None without masks for each image.
      proportional: whether only the number of pixels of `image_size` counts, with the proportions
        of the training images; see `proportional_size`.
      chooses_fit: whether `fit_for` chooses `framing.fit` by all images but the test images.

    Raises:
      InputError: dataset, category, a folder or an image cannot be used.
    """
    reading = Reading(image_size, framing, white_level, proportional, chooses_fit, own_masks)
    if name == "folder":
        splits = _load_folder(category, root, reading)
    else:
        from efficientad_jax.data.datasets import builder_of

        builder = builder_of(name, category, root, data_dir=data_dir or None)
        splits = _load_copy(builder, reading)
    train = splits["train"]
    test = splits.get("test", subset(train, np.arange(0)))
    if "validation" in splits:
        validation = splits["validation"]
    else:
        train, validation = hold_out(train, validation_fraction, seed)
    dataset = Dataset(train, validation, test)
    report_repeated(dataset)
    return dataset


def load_configured_dataset(config: Config, framing: Framing | None = None) -> Dataset:
    """The dataset that a configuration names, at the model's input size.

    `framing` is that of a detector; None reads the configuration's.

    Raises:
      InputError: it cannot be loaded.
    """
    chooses_fit = framing is None and config.model.fit == "auto"
    if framing is None:
        framing = read_framing(config)
    own_masks = None
    if has_own_masks(config.dataset, framing):
        own_masks = list_own_masks(Path(config.dataset.ignore_mask).expanduser())
    return load_dataset(
        config.dataset.name,
        config.category,
        config.dataset.root,
        data_dir=config.dataset.data_dir,
        image_size=config.model.input_shape,
        proportional=config.model.input_size == "auto",
        validation_fraction=config.dataset.validation_fraction,
        seed=config.seed,
        white_level=config.dataset.white_level,
        framing=framing,
        own_masks=own_masks,
        chooses_fit=chooses_fit,
    )


def load_images(
    paths: Sequence[Path],
    image_size: tuple[int, int],
    *,
    white_level: int = WHITE_LEVEL,
    framing: Framing = PLAIN,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Decodes and resizes image files; see `decode_image` and `network_input`.

    Raises:
      InputError: one cannot be decoded or does not suit the framing; it is named.
    """
    reading = Reading(image_size, framing, white_level)
    dataset = grain.MapDataset.source(list(paths)).map(partial(_load_file, reading=reading))
    return np.stack(list(dataset.to_iter_dataset(_READ)))


def _load_file(path: Path, reading: Reading) -> UInt8[np.ndarray, "h w 3"]:
    image = decode_image(path, white_level=reading.white_level)
    return network_input(reading.framing, image, reading.size, name=str(path))


def _load_folder(category: str, root: str, reading: Reading) -> dict[str, ImageSet]:
    from efficientad_jax.data.datasets import folder

    examples = folder.list_examples(folder.resolve_category(root, category))
    train, validation = (
        [(str(example.image), example.image) for example in examples.get(split, [])]
        for split in ("train", "validation")
    )
    reading = reading.suited_to(train, validation)
    splits = {}
    for split, listed in examples.items():
        read = partial(_read_example, reading=reading, split=split)
        images = grain.MapDataset.source(listed).map(read)
        splits[split] = _collect(images, white_level=reading.white_level)
    return splits


def _load_copy(builder: Any, reading: Reading) -> dict[str, ImageSet]:
    """Loads the copy of a builder of tensorflow-datasets, which is made unless it exists."""
    # Slow to import, and not needed for folders.
    from efficientad_jax.data.prepare import StoredBytes, write_dataset

    write_dataset(builder, getattr(builder, "source", ""))
    stored = StoredBytes()
    sources = {
        split: builder.as_data_source(split, decoders={"image": stored, "masks": stored})
        for split in builder.info.splits
    }
    train, validation = (
        ((example["name"].decode(), example["image"]) for example in sources.get(split, []))
        for split in ("train", "validation")
    )
    reading = reading.suited_to(train, validation)
    splits = {}
    for split, source in sources.items():
        read = partial(_decode_example, reading=reading, split=split)
        splits[split] = _collect(
            grain.MapDataset.source(source).map(read),
            white_level=reading.white_level,
            has_areas="saturation_areas" in builder.info.features,
        )
    return splits


class _Loaded(NamedTuple):
    """One image; the fields are those of an `ImageSet`."""

    name: str
    framed: Framed
    label: int
    defect: str
    mask: Bool[np.ndarray, "_h _w"] | None
    regions: list[tuple[Bool[np.ndarray, "_h _w"], float]]
    peak: int | None


def _collect(dataset: grain.MapDataset, *, white_level: int, has_areas: bool = False) -> ImageSet:
    loaded: list[_Loaded] = sorted(dataset.to_iter_dataset(_READ), key=lambda image: image.name)
    check_white_level([image.peak for image in loaded], white_level)
    framed = [image.framed for image in loaded]
    own_masks = [image.own_mask for image in framed if image.own_mask is not None]
    ignored = [image.ignored for image in framed if image.ignored is not None]
    return ImageSet(
        images=stack_images([image.image for image in framed]),
        labels=np.array([image.label for image in loaded], np.int64),
        names=[image.name for image in loaded],
        defects=[image.defect for image in loaded],
        masks=[image.mask for image in loaded],
        sizes=[image.size for image in framed],
        regions=[image.regions for image in loaded] if has_areas else None,
        own_masks=np.stack(own_masks) if own_masks else None,
        ignored=ignored or None,
    )


def check_white_level(peaks: Sequence[int | None], white_level: int) -> None:
    """Warns if images of 16 bits use a small part of the gray levels, as those of cameras do."""
    known = [peak for peak in peaks if peak is not None]
    limit = next((limit for limit in _CAMERA_LIMITS if max(known, default=limit) <= limit), None)
    if known and limit is not None and limit < white_level:
        _log.warning(
            "images of 16 bits: no value is above %d, so that few gray levels are left; for a "
            "camera of %d bits set --config.dataset.white_level=%d",
            max(known),
            limit.bit_length(),
            limit,
        )


def _read_example(example: Example, reading: Reading, split: str) -> _Loaded:
    image, masks, peak = read_files(example, reading.white_level)
    return _Loaded(
        example.name,
        frame(image, example.name, str(example.image), reading=reading, split=split),
        int(example.defect != GOOD),
        example.defect,
        _union([cut_out(reading.framing, mask) for mask in masks]),
        [],
        peak,
    )


def _decode_example(example: dict[str, Any], reading: Reading, split: str) -> _Loaded:
    name = example["name"].decode()
    image, peak = decode_image_and_peak(example["image"], name, white_level=reading.white_level)
    masks = [cut_out(reading.framing, decode_mask(mask, name)) for mask in example["masks"]]
    regions = [
        (mask, float(area))
        for mask, area in zip(masks, example.get("saturation_areas", ()), strict=False)
    ]
    if reading.framing.box is not None:  # of defects that lie inside, or a part of them
        regions = [(mask, min(area, float(mask.sum()))) for mask, area in regions if mask.any()]
    return _Loaded(
        name,
        frame(image, name, name, reading=reading, split=split),
        int(example["label"]),
        example["defect"].decode(),
        _union(masks),
        regions,
        peak,
    )


def _union(masks: list[Bool[np.ndarray, "h w"]]) -> Bool[np.ndarray, "h w"] | None:
    """The union of masks. It is a single mask itself, so that memory holds it once."""
    return np.any(masks, axis=0) if len(masks) > 1 else next(iter(masks), None)


def report_repeated(dataset: Dataset) -> None:
    """Warns of images that are in two splits: results on images that were trained on are too good.

    They are compared at the networks' input size.
    """
    known: dict[bytes, tuple[ImageSet, int]] = {}
    for split, images in zip(Dataset._fields, dataset, strict=True):
        pairs = []
        for i, image in enumerate(images.images):
            # A few pixels find candidates, so that this takes no time.
            other, j = known.setdefault(image[::8, ::8].tobytes(), (images, i))
            if other is not images and np.array_equal(image, other.images[j]):
                pairs.append((images.names[i], other.names[j]))
        if pairs:
            _log.warning(
                "%d of %d %s images are also training or validation images, such as %s and %s: "
                "results on them are too good; delete one of each two",
                len(pairs),
                len(images.names),
                split,
                *map(printable, pairs[0]),
            )


def hold_out(images: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Splits off a random part: at least one image goes, at least one stays."""
    count = len(images.names)
    held_out = min(max(1, round(fraction * count)), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return subset(images, np.sort(order[held_out:])), subset(images, np.sort(order[:held_out]))


def subset(images: ImageSet, chosen: Int[np.ndarray, " m"]) -> ImageSet:
    """Some of the images, by their indices."""
    return ImageSet(
        images.images[chosen],
        images.labels[chosen],
        *([field[i] for i in chosen] for field in images[2:6]),
        regions=None if images.regions is None else [images.regions[i] for i in chosen],
        own_masks=None if images.own_masks is None else images.own_masks[chosen],
        ignored=None if images.ignored is None else [images.ignored[i] for i in chosen],
    )
