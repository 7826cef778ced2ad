"""A pool of views with their targets, of which every step takes random crops.

The targets of a view are computed once and stay. A crop of them is what the backbone, having seen
the whole view, says of the crop's patches; the PDN, whose outputs see 33x33 pixels each, needs no
more than the crop. So compute goes to the PDN's steps, and each step sees many images.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float16, UInt8

from efficientad_jax.distillation.targets import DescribedView
from efficientad_jax.distillation.views import TARGET_SIZE, VIEW_SIZE
from efficientad_jax.networks import pdn


class ViewPool(NamedTuple):
    """Views and what the backbone makes of them."""

    images: UInt8[np.ndarray, "v 256 256 3"]
    targets: Float16[np.ndarray, "v 64 64 c"]


def empty_pool(views: int, channels: int) -> ViewPool:
    """A pool to be filled."""
    return ViewPool(
        np.empty((views, VIEW_SIZE, VIEW_SIZE, 3), np.uint8),
        np.empty((views, TARGET_SIZE, TARGET_SIZE, channels), np.float16),
    )


def put_in(pool: ViewPool, views: Iterable[DescribedView]) -> None:
    """Puts views in the places of older ones: view `i` goes to place `i` modulo their number."""
    for number, image, targets in views:
        pool.images[number % len(pool.images)] = image
        pool.targets[number % len(pool.images)] = targets


def random_crops(
    pool: ViewPool, rng: np.random.Generator, count: int, crop: int, share: slice = slice(None)
) -> tuple[UInt8[np.ndarray, "n {crop} {crop} 3"], Float16[np.ndarray, "n t t c"]]:
    """Crops of random views with the targets of every patch inside them.

    Args:
      pool: the views.
      rng: decides views and positions.
      count: crops, each of a view drawn with replacement.
      crop: their side in pixels, a multiple of 4.
      share: which of the crops to cut; all are drawn, whatever the share.

    Returns:
      The crops and the `crop // 4 - 8` targets a side that an unpadded PDN predicts from them:
      its first output is centred 16 pixels, 4 targets, inside the crop.
    """
    cells = crop // pdn.STRIDE
    margin, inside = pdn.MARGIN, cells - 2 * pdn.MARGIN
    views = rng.integers(len(pool.images), size=count)
    corners = rng.integers(TARGET_SIZE - cells + 1, size=(count, 2))
    images, targets = [], []
    for view, (i, j) in zip(views[share], corners[share], strict=True):
        y, x = i * pdn.STRIDE, j * pdn.STRIDE
        images.append(pool.images[view, y : y + crop, x : x + crop])
        i, j = i + margin, j + margin
        targets.append(pool.targets[view, i : i + inside, j : j + inside])
    return np.stack(images), np.stack(targets)
