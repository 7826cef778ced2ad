"""A pool of views with their targets, from which every step takes random crops.

The targets of a view are computed once and kept. The targets of a crop are a crop of the targets,
computed by a backbone that has seen the whole view. The PDN needs only the crop, because each of
its outputs sees 33x33 pixels. Most of the compute therefore goes into the PDN's steps, and each
step sees many images.

A pool can be kept in files, so that a run that resumes does not compute it again.
"""

import logging
import os
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float16, Int, Int64, UInt8
from numpy.typing import DTypeLike

from efficientad_jax.distillation.targets import ViewWithTargets
from efficientad_jax.distillation.views import TARGET_SIZE, VIEW_SIZE
from efficientad_jax.networks import pdn

_log = logging.getLogger(__name__)

# Neither an id nor a checksum.
_EMPTY = -1


class ViewPool(NamedTuple):
    """Slots for views; view `i` is in slot `i % v`.

    Attributes:
      images: the PDN's images.
      targets: their targets.
      labels: for each slot the id of its view and a checksum of its image and targets, -1 for an
        empty slot. None for a pool in memory.
    """

    images: UInt8[np.ndarray, "v 256 256 3"]
    targets: Float16[np.ndarray, "v 64 64 c"]
    labels: Int64[np.ndarray, "v 2"] | None = None


def allocate_pool(views: int, channels: int, folder: Path | None = None) -> ViewPool:
    """Allocates a pool in memory, or opens one in the files of a folder.

    Args:
      views: number of slots.
      channels: number of targets of a patch.
      folder: where the pool is kept between runs, None for a pool in memory. The pool is in memory
        as well if the files cannot be created, for example on a full disk.
    """
    images = (views, VIEW_SIZE, VIEW_SIZE, 3)
    targets = (views, TARGET_SIZE, TARGET_SIZE, channels)
    if folder is not None:
        try:
            folder.mkdir(exist_ok=True)
            return ViewPool(
                _open_array(folder / "images.npy", images, np.uint8),
                _open_array(folder / "targets.npy", targets, np.float16),
                _open_array(folder / "labels.npy", (views, 2), np.int64, fill=_EMPTY),
            )
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            _log.warning(
                "%s: the pool of views cannot be kept there (%s); it is kept in memory, and a run "
                "that resumes computes it again",
                folder,
                error.strerror or error,
            )
    return ViewPool(np.empty(images, np.uint8), np.empty(targets, np.float16))


def _open_array(
    file: Path, shape: tuple[int, ...], dtype: DTypeLike, *, fill: int | None = None
) -> np.ndarray:
    """Maps an array in a file; creates the file if it is missing or holds something else.

    Raises:
      OSError: the file cannot be created or read.
    """
    array: Any = None
    if file.is_file():
        try:
            array = np.load(file, mmap_mode="r+", allow_pickle=False)
        except (ValueError, EOFError):  # created by a run that was killed then
            array = None
    if array is None or array.shape != shape or array.dtype != dtype:
        array = np.lib.format.open_memmap(file, "w+", dtype, shape)
        if fill is not None:
            array[:] = fill
    # A full disk is an error here. Later, when a page is written, it would kill the process.
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return array


def insert(pool: ViewPool, views: Iterable[ViewWithTargets]) -> None:
    """Stores views in their slots, over older ones."""
    for view_id, image, targets in views:
        slot = view_id % len(pool.images)
        if pool.labels is not None:
            pool.labels[slot] = _EMPTY
        pool.images[slot] = image
        pool.targets[slot] = targets
        # Last: a slot that is written in part when the process is killed must not look complete.
        if pool.labels is not None:
            pool.labels[slot] = view_id, _checksum(pool, slot)


def missing_views(pool: ViewPool, ids: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """The views among `ids` that the pool does not hold, or not undamaged."""
    return np.array([i for i in ids.tolist() if not _holds(pool, i)], ids.dtype)


def _holds(pool: ViewPool, view_id: int) -> bool:
    if pool.labels is None:
        return False
    slot = view_id % len(pool.images)
    stored_id, checksum = pool.labels[slot]
    # The checksum covers a crash of the machine, after which any page may be an old one.
    return bool(stored_id == view_id and checksum == _checksum(pool, slot))


def _checksum(pool: ViewPool, slot: int) -> int:
    return zlib.crc32(pool.targets[slot], zlib.crc32(pool.images[slot]))


def random_crops(
    pool: ViewPool,
    rng: np.random.Generator,
    count: int,
    *,
    crop: int,
    rows: slice = slice(None),
) -> tuple[UInt8[np.ndarray, "n {crop} {crop} 3"], Float16[np.ndarray, "n t t c"]]:
    """Crops of random views with the targets of every patch inside them.

    Args:
      pool: the views.
      rng: draws the views and positions.
      count: number of crops, each from a view drawn with replacement.
      crop: their side in pixels, a multiple of 4.
      rows: which of the crops to cut; all are drawn in any case.

    Returns:
      The crops and the `crop // 4 - 8` targets per side that an unpadded PDN predicts from them:
      its first output is centered 16 pixels, that is 4 targets, inside the crop.
    """
    cells = crop // pdn.STRIDE
    margin, inside = pdn.MARGIN, cells - 2 * pdn.MARGIN
    views = rng.integers(len(pool.images), size=count)
    corners = rng.integers(TARGET_SIZE - cells + 1, size=(count, 2))
    images, targets = [], []
    for view, (i, j) in zip(views[rows], corners[rows], strict=True):
        y, x = i * pdn.STRIDE, j * pdn.STRIDE
        images.append(pool.images[view, y : y + crop, x : x + crop])
        i, j = i + margin, j + margin
        targets.append(pool.targets[view, i : i + inside, j : j + inside])
    return np.stack(images), np.stack(targets)
