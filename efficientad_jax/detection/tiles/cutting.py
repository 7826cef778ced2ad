"""The places of overlapping tiles, their shares where they overlap, and the pixels of each."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from efficientad_jax.data.image_rows import ImageRows
from efficientad_jax.networks.pdn import MARGIN, STRIDE

# With it, the outputs of unpadded tiles leave no gap in the map of the image.
SMALLEST_OVERLAP = 2 * MARGIN * STRIDE


def tile_offsets(side: int, tile: int, overlap: int) -> list[int]:
    """The first pixels of the tiles along one side of an image: evenly spread multiples of 4.

    The last may reach up to 3 pixels beyond the image; no feature of an unpadded network sees them.

    Args:
      side: of the image, at least `tile`.
      tile: side of a tile, a multiple of 4.
      overlap: the smallest overlap of two neighbors, from 32 to `tile - 4`.
    """
    last = -(-(side - tile) // STRIDE)
    steps = -(-last // ((tile - overlap) // STRIDE))
    return [STRIDE * (i * last // max(steps, 1)) for i in range(steps + 1)]


def blend_shares(offsets: list[int], tile: int) -> Float32[np.ndarray, "t c"]:
    """The weight of each tile along one side in each of its cells; for any cell they sum to 1.

    Args:
      offsets: of `tile_offsets`.
      tile: side of a tile in pixels.
    """
    cells = tile // STRIDE
    rising = np.maximum(np.arange(cells) - MARGIN + 1.0, 0)
    # Weights do not fall toward the border of the image: no other tile covers it.
    weights = np.full((len(offsets), cells), float(cells))
    weights[1:] = rising
    weights[:-1] = np.minimum(weights[:-1], rising[::-1])
    windows = [slice(offset // STRIDE, offset // STRIDE + cells) for offset in offsets]
    total = np.zeros(windows[-1].stop)
    for window, of_tile in zip(windows, weights, strict=True):
        total[window] += of_tile
    return np.stack(
        [of_tile / total[window] for window, of_tile in zip(windows, weights, strict=True)]
    ).astype(np.float32)


def cut_tile(
    image: UInt8[np.ndarray, "h w 3"], top: int, left: int, *, tile: tuple[int, int]
) -> UInt8[np.ndarray, "th tw 3"]:
    """A tile of an image; the last row and column are repeated where it reaches beyond."""
    part = image[top : top + tile[0], left : left + tile[1]]
    missing = [(0, tile[i] - part.shape[i]) for i in (0, 1)]
    return np.pad(part, (*missing, (0, 0)), mode="edge")


def cut_row_by_row(
    image: ImageRows, rows: list[int], columns: list[int], *, tile: tuple[int, int]
) -> Iterator[UInt8[np.ndarray, "th tw 3"]]:
    """The tiles of an image, row by row. It holds only the rows of one row of tiles."""
    for top in rows:
        band = image.read(top, min(top + tile[0], image.size[0]))
        for left in columns:
            yield cut_tile(band, 0, left, tile=tile)


class PlacedTile(NamedTuple):
    """A tile, with its image's index and its place in the image in pixels."""

    image: int
    top: int
    left: int
    pixels: UInt8[np.ndarray, "th tw 3"]


def cut_all_tiles(
    images: UInt8[np.ndarray, "n h w 3"], sizes: Sequence[tuple[int, int]], tile: tuple[int, int]
) -> Iterator[PlacedTile]:
    """Tiles with the smallest overlap that cover each image, image after image.

    Args:
      images: at least as large as a tile.
      sizes: height and width that count of each image.
      tile: height and width of a tile.
    """
    for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
        rows, columns = (tile_offsets(size[i], tile[i], SMALLEST_OVERLAP) for i in (0, 1))
        part = image[: size[0], : size[1]]
        for top, left in product(rows, columns):
            yield PlacedTile(index, top, left, cut_tile(part, top, left, tile=tile))
