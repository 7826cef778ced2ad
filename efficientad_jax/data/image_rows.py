"""Images that are read a few rows at a time, so that their size takes no memory."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from efficientad_jax.data.decoding import decode_image
from efficientad_jax.errors import InputError
from efficientad_jax.storage.regular import require_regular_file

# Formats in which pixels can lie as they are. The others have to be decoded from the beginning.
_FORMATS = ("BMP", "PPM", "TIFF")

# Bytes per pixel, by Pillow's names of the pixels in memory and in the file.
_BYTES = {
    ("L", "L"): 1,
    ("RGB", "RGB"): 3,
    ("RGB", "BGR"): 3,
    ("RGB", "RGBX"): 4,
    ("RGB", "BGRX"): 4,
}

_ORIENTATION = 0x0112  # in EXIF and TIFF; 1 is upright


class ImageRows(NamedTuple):
    """An image of which parts can be read.

    Attributes:
      size: height and width.
      read: returns the RGB rows from a first one up to, and without, another.
    """

    size: tuple[int, int]
    read: Callable[[int, int], UInt8[np.ndarray, "r w 3"]]


class _Block(NamedTuple):
    """A rectangle of an image whose rows lie one after another in the file."""

    left: int
    top: int
    right: int
    bottom: int
    offset: int
    stride: int
    is_bottom_up: bool


def rows_of_array(pixels: UInt8[np.ndarray, "h w 3"]) -> ImageRows:
    """The rows of an image that is in memory."""
    return ImageRows(pixels.shape[:2], lambda start, stop: pixels[start:stop])


def rows_of_file(path: Path) -> ImageRows | None:
    """The rows of a file, none of which are read yet.

    They can be read from BMP, PGM, PPM and TIFF files of 8 bits per channel without compression,
    palette or rotation.

    Returns:
      None for every other file: it can only be decoded as a whole, by `decode_image`, whose error
      also says why a file cannot be read. `read` raises `InputError` if the file is cut off.
    """
    try:
        require_regular_file(path, f"image {path}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                if image.getexif().get(_ORIENTATION, 1) != 1:
                    return None
                mode, width, height = image.mode, image.width, image.height
                tiles = list(image.tile)
    except Exception:  # Pillow raises almost anything; `decode_image` reports it.
        return None
    if any(tile[0] != "raw" for tile in tiles):
        return None
    rawmodes = {_arguments(tile[3])[0] for tile in tiles}
    (rawmode,) = rawmodes if len(rawmodes) == 1 else (None,)
    blocks = _blocks(tiles, _BYTES.get((mode, rawmode or ""), 0))
    area = sum((b.right - b.left) * (b.bottom - b.top) for b in blocks)
    if rawmode is None or area != width * height:
        return None

    def read(start: int, stop: int) -> UInt8[np.ndarray, "r w 3"]:
        rows = np.zeros((stop - start, width, 3), np.uint8)
        try:
            with path.open("rb") as file:
                for block in blocks:
                    first, last = max(start, block.top), min(stop, block.bottom)
                    if first >= last:
                        continue
                    skipped = block.bottom - last if block.is_bottom_up else first - block.top
                    file.seek(block.offset + skipped * block.stride)
                    part = Image.frombytes(
                        mode,
                        (block.right - block.left, last - first),
                        file.read((last - first) * block.stride),
                        "raw",
                        rawmode,
                        block.stride,
                        -1 if block.is_bottom_up else 1,
                    )
                    rows[first - start : last - start, block.left : block.right] = decode_image(
                        part
                    )
        except OSError as error:
            raise InputError(f"image {path}: cannot be read ({error.strerror})") from error
        except ValueError as error:  # not enough bytes
            raise InputError(f"image {path}: damaged or cut off ({error})") from error
        return rows

    return ImageRows((height, width), read)


def _arguments(of_decoder: object) -> tuple[str, int, int]:
    """Pixel format, bytes per row (0: no padding) and direction, of which any may be missing."""
    given: tuple[Any, ...] = of_decoder if isinstance(of_decoder, tuple) else (of_decoder,)
    rawmode, stride, direction = (*given, *("", 0, 1)[len(given) :])
    return str(rawmode), int(stride), int(direction)


def _blocks(tiles: list, bytes_per_pixel: int) -> list[_Block]:
    """The blocks of Pillow's tiles; none if the size of a pixel is not known, that is, 0."""
    blocks = []
    for _, extents, offset, of_decoder in tiles if bytes_per_pixel else []:
        left, top, right, bottom = extents
        _, stride, direction = _arguments(of_decoder)
        stride = stride or (right - left) * bytes_per_pixel
        blocks.append(_Block(left, top, right, bottom, offset, stride, direction < 0))
    return blocks
