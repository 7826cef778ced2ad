"""Datasets of images that a program gives one by one, as files or from memory."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from efficientad_jax.config import Config
from efficientad_jax.data.decoding import ImageSource, decode_image_and_peak
from efficientad_jax.data.examples import GOOD, Reading
from efficientad_jax.data.framing import network_input, seen_size, stack_images
from efficientad_jax.data.framing_file import has_own_masks, read_framing
from efficientad_jax.data.loading import (
    Dataset,
    ImageSet,
    check_white_level,
    hold_out,
    report_repeated,
)
from efficientad_jax.errors import InputError, printable

_MOST_CHANNELS = 4


def load_given_images(
    images: Sequence[ImageSource] | Shaped[np.ndarray, "..."], config: Config
) -> Dataset:
    """A dataset of good images, for training and validation; it has no test images.

    Args:
      images: at least 2, of any size. Paths are sorted; the order of other images counts.
      config: of the training; its model's input, its dataset's fields and its seed are used.

    Raises:
      InputError: there are fewer than 2 images, one is given twice or cannot be decoded, or an
        array holds a single image.
    """
    if isinstance(images, np.ndarray):
        is_single = images.ndim < 3 or (images.ndim == 3 and images.shape[-1] <= _MOST_CHANNELS)
        if is_single:
            raise InputError(
                f"images: an array of shape {images.shape}, expected several images: [n, h, w] or "
                "[n, h, w, channels]"
            )
    named = sorted(_named(images).items())
    if len(named) < 2:
        raise InputError(f"images: {len(named)}, expected at least 2 good images")
    model, white_level = config.model, config.dataset.white_level
    framing = read_framing(config)
    if has_own_masks(config.dataset, framing):
        raise InputError(
            f"config.dataset.ignore_mask = {config.dataset.ignore_mask!r}: a folder of masks, "
            "expected one mask for all images, or the images in a folder"
        )
    is_proportional, chooses_fit = model.input_size == "auto", model.fit == "auto"
    reading = Reading(model.input_shape, framing, white_level, is_proportional, chooses_fit)
    reading = reading.suited_to(named)
    inputs, sizes, peaks = [], [], []
    for name, source in named:
        pixels, peak = decode_image_and_peak(source, name, white_level=white_level)
        inputs.append(network_input(reading.framing, pixels, reading.size, name=name))
        sizes.append(seen_size(reading.framing, (pixels.shape[0], pixels.shape[1])))
        peaks.append(peak)
    check_white_level(peaks, white_level)
    count = len(named)
    good = ImageSet(
        images=stack_images(inputs),
        labels=np.zeros(count, np.int64),
        names=[name for name, _ in named],
        defects=[GOOD] * count,
        masks=[None] * count,
        sizes=sizes,
    )
    train, validation = hold_out(good, config.dataset.validation_fraction, config.seed)
    none = ImageSet(good.images[:0], good.labels[:0], [], [], [], [])
    dataset = Dataset(train, validation, none)
    report_repeated(dataset)
    return dataset


def _named(images: Sequence[ImageSource] | np.ndarray) -> dict[str, ImageSource]:
    """The images by name: the path of a file, the place of another image in the sequence.

    Raises:
      InputError: a path is given twice.
    """
    named: dict[str, ImageSource] = {}
    for number, image in enumerate(images):
        name = f"image {number:06}"
        if isinstance(image, str | os.PathLike):
            name = str(Path(image))
        if name in named:
            raise InputError(f"image {printable(name)}: is given twice, expected different images")
        named[name] = image
    return named
