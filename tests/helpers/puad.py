"""Images for PUAD: of several brightnesses, in memory."""

import numpy as np

from efficientad_jax.data.loading import Dataset, ImageSet
from tests.helpers.images import uint8_images

SIZE = (128, 128)


def image_set(images: np.ndarray) -> ImageSet:
    count, size = len(images), images.shape[1:3]
    names = [f"{i:02}.png" for i in range(count)]
    good = ["good"] * count
    return ImageSet(images, np.zeros(count, np.int64), names, good, [None] * count, [size] * count)


def images_of(count: int, seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Images of different brightness, so that their mean features differ."""
    images = uint8_images(count, size, seed, block=8)
    light = np.random.default_rng(seed).uniform(0.4, 1.0, count)
    return (images * light[:, None, None, None]).astype(np.uint8)


def dataset_of(size: tuple[int, int] = SIZE) -> Dataset:
    train, validation, test = (images_of(n, s, size) for n, s in ((10, 1), (10, 2), (2, 3)))
    return Dataset(image_set(train), image_set(validation), image_set(test))
