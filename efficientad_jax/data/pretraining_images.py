"""Photographs for the pretraining penalty: read when they are due, in a bounded memory."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from efficientad_jax.data.decoding import decode_image, resize_image
from efficientad_jax.data.files import list_images
from efficientad_jax.errors import InputError

# Memory for decoded photographs, in bytes: 2,543 of 256x256. ImageNet would need 250 GB.
_KEPT_BYTES = 500_000_000
_THREADS = 2


class PretrainingImages(NamedTuple):
    """The photographs of a folder.

    Attributes:
      total: number of photographs.
      read: returns the photographs with these numbers, in any shape, as `[n, h, w, 3]`.

    Raises:
      InputError: from `read`, a photograph cannot be decoded.
    """

    total: int
    read: Callable[[Int[np.ndarray, "..."]], UInt8[np.ndarray, "n h w 3"]]


def open_pretraining_images(folder: str, input_size: tuple[int, int]) -> PretrainingImages:
    """Lists the photographs of a folder. If all fit into memory, they are read now.

    A photograph is resized to twice the input size and cropped to its center (Algorithm 1, lines
    18-20).

    Args:
      folder: of the photographs, `config.pretraining_images`.
      input_size: height and width of the networks' input in pixels.

    Raises:
      InputError: there is no such folder, there are no images in it, or one cannot be decoded.
    """
    if not folder:
        raise InputError(
            "config.losses.penalty = True: needs photographs, give their folder as "
            "config.pretraining_images, or switch it off"
        )
    height, width = input_size
    files = list_images(Path(folder))
    kept = max(1, _KEPT_BYTES // (height * width * 3))
    center = (slice(height // 2, height // 2 + height), slice(width // 2, width // 2 + width))

    @lru_cache(maxsize=kept)
    def read_one(index: int) -> UInt8[np.ndarray, "h w 3"]:
        # A copy, as a view would keep the whole photograph.
        return resize_image(decode_image(files[index]), 2 * height, 2 * width)[center].copy()

    threads = ThreadPoolExecutor(_THREADS)
    if len(files) <= kept:
        bar = tqdm(total=len(files), desc="photographs", unit="image", file=sys.stderr, delay=5)
        with bar:
            for _ in threads.map(read_one, range(len(files))):
                bar.update()

    def read(indices: Int[np.ndarray, "..."]) -> UInt8[np.ndarray, "n h w 3"]:
        return np.stack(list(threads.map(read_one, indices.ravel().tolist())))

    return PretrainingImages(len(files), read)
