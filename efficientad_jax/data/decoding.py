"""Decodes an image in any form to 8-bit RGB."""

import contextlib
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from efficientad_jax.errors import (
    InputError,
    TooManyPixelsError,
    UnknownFormatError,
    printable,
)
from efficientad_jax.storage.regular import require_regular_file

_log = logging.getLogger(__name__)

# The forms of an image: a path, encoded bytes, a PIL image or an array.
ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

# The formats of `data/files.py`. Pillow knows more; some of them run a program.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# In EXIF; these values turn an image by 90 degrees.
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)

# The largest value of 16 bits.
WHITE_LEVEL = 65535

# Pillow keeps one byte of each color of 16 bits. These are its names for the way to read the upper
# byte, as it does, each with that for the lower byte. "N" is the byte order of the processor.
_NATIVE_LOW = "B" if sys.byteorder == "little" else "L"
_LOW_BYTES = {
    f"{mode};16{upper}": f"{mode};16{lower}"
    for mode in ("RGB", "RGBA", "RGBX")
    for upper, lower in (("B", "L"), ("L", "B"), ("N", _NATIVE_LOW))
}

# Formats that may change pixels when they are written.
_LOSSY_FORMATS = ("JPEG", "WEBP")
# A lossless mask with at most so many values besides 0, or with no larger value, names its defects
# by numbers: VisA counts them from 1.
_MOST_MASK_VALUES = 4
_LARGEST_MASK_NUMBER = 31

# Python has one list of warning filters for all threads. Images are decoded in several threads;
# two that changed the list at the same time would leave it changed.
_WARNING_FILTERS = threading.Lock()


def decode_image(
    source: ImageSource,
    name: str = "",
    most_pixels: int | None = None,
    *,
    white_level: int = WHITE_LEVEL,
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image to RGB.

    Grayscale is repeated over the channels, transparency is dropped, a palette is applied, CMYK is
    converted, 16 bits are reduced to 8, and an EXIF rotation is applied. The first frame of an
    animation and the first page of a TIFF file are decoded. With the default white level, gray
    values of 16 bits are rounded, and colors of 16 bits are cut to their upper byte.

    Args:
      source: a path, encoded bytes, a PIL image, or an array `[h, w]` or `[h, w, c]` with 1 to 4
        channels of uint8, uint16, bool, or floats in [0, 1].
      name: what to call the image in an error; a path names itself.
      most_pixels: the largest number of pixels of an encoded image; checked before decoding.
      white_level: value of 16-bit pixels that becomes 255; larger ones do too. A camera of 12 bits
        has 4095.

    Raises:
      InputError: it cannot be read or decoded, or its pixels are none of the above.
      UnknownFormatError: it is no image, or of a format other than those in `data/files.py`.
      TooManyPixelsError: it has more than `most_pixels` pixels, or more than Pillow accepts without
        a warning (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    return decode_image_and_peak(source, name, most_pixels, white_level=white_level)[0]


def decode_image_and_peak(
    source: ImageSource,
    name: str = "",
    most_pixels: int | None = None,
    *,
    white_level: int = WHITE_LEVEL,
) -> tuple[UInt8[np.ndarray, "h w 3"], int | None]:
    """As `decode_image`, with the largest value of an image of 16 bits, None for others.

    Of colors of 16 bits it is the largest value with the same upper byte, unless `white_level` is
    given.
    """
    name = name or _name_of(source)
    read = _read(source, name, most_pixels)
    pixels = read.pixels
    if read.is_upper_byte and white_level != WHITE_LEVEL:
        lower = _read(source, name, most_pixels, part=_LOWER)
        pixels = read.pixels.astype(np.uint16) << 8 | lower.pixels
    peak = int(pixels.max()) if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2 else None
    if read.is_upper_byte and peak is None:
        peak = int(pixels.max()) << 8 | 255
    reduced = _to_eight_bits(pixels, name, white_level)
    return np.ascontiguousarray(np.broadcast_to(reduced, (*reduced.shape[:2], 3))), peak


def decode_mask(source: ImageSource, name: str = "") -> Bool[np.ndarray, "h w"]:
    """Decodes a mask: True where there is a defect.

    In an array, and in a lossless file with few or only small values, each value but 0 marks a
    defect. Files of lossy formats, and those with many values such as anti-aliased ones, have gray
    values that mark none. There, values count from half of 255 or of the file's largest value on. A
    line in the log says so once per folder, and so it does if more than half of an image is marked,
    as in a mask with 0 for the defect. In a file, pixels that are transparent mark no defect.

    Raises:
      InputError: as `decode_image`, or a lossy file has gray values but none of at least half, or
        only the transparency of a file differs between pixels.
    """
    name = name or _name_of(source)
    read = _read(source, name, part=_MASK)
    marked: np.ndarray = np.asarray(read.pixels.any(-1))
    if read.opaque is not None and read.opaque.any() and not read.opaque.all():
        if not marked.any():
            raise InputError(
                f"mask {name}: black with transparent parts, expected 255 for a defect and 0 "
                "elsewhere; save it as a gray image without transparency"
            )
        marked &= read.opaque
    if read.pixels.dtype != np.bool_ and read.file_format:
        marked = _without_gray(read.pixels.max(-1) * marked, read.file_format, name)
    if 2 * np.count_nonzero(marked) > marked.size:
        _report_large_mask(os.path.dirname(name))
    return marked


def _without_gray(
    values: Shaped[np.ndarray, "h w"], file_format: str, name: str
) -> Bool[np.ndarray, "h w"]:
    """Where the values of a mask mark a defect; see `decode_mask`."""
    marked: np.ndarray = np.asarray(values != 0)
    counts = np.bincount(values.ravel()) if values.dtype == np.uint8 else None
    found = np.unique(values) if counts is None else np.flatnonzero(counts)
    found = found[found != 0]
    lossy = file_format in _LOSSY_FORMATS
    by_number = len(found) <= _MOST_MASK_VALUES or found[-1] <= _LARGEST_MASK_NUMBER
    if not len(found) or (by_number and not lossy):
        return marked
    half = (255 if lossy else float(found[-1])) / 2
    mask = np.asarray(values >= half)
    if not mask.any():
        raise InputError(
            f"mask {name}: a file of the lossy format {file_format} whose largest value is "
            f"{found[-1]}, expected 255 for a defect; save it as PNG"
        )
    if np.any(marked & ~mask):
        _report_gray_mask(os.path.dirname(name), half)
    return mask


@cache
def _report_large_mask(folder: str) -> None:
    _log.warning(
        "masks in %s mark more than half of an image: expected 0 for the background, and other "
        "values for defects only",
        printable(folder) or "the dataset",
    )


@cache
def _report_gray_mask(folder: str, threshold: float) -> None:
    _log.warning(
        "masks in %s have gray values, as lossy and anti-aliased files do: values of at least %g "
        "count as a defect",
        printable(folder) or "the dataset",
        threshold,
    )


def size_of_image(source: ImageSource, name: str = "") -> tuple[int, int]:
    """Height and width of an image, of an encoded one without decoding it.

    Raises:
      InputError: as `decode_image`.
    """
    opened = source
    if isinstance(source, np.ndarray):
        return source.shape[0], source.shape[1]
    try:
        with contextlib.ExitStack() as stack:
            if not isinstance(source, Image.Image):
                content = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
                with _pillow_warnings():
                    opened = stack.enter_context(Image.open(content, formats=_FORMATS))
            # Pillow decodes a PNG file to look for EXIF behind its pixels.
            has_exif = opened.format != "PNG" or "exif" in opened.info  # pyright: ignore
            exif = opened.getexif() if has_exif else {}  # pyright: ignore
            turned = exif.get(_ORIENTATION, 1) in _TURNED
            width, height = opened.size  # pyright: ignore
    except Exception:  # Pillow raises almost anything; decoding reports it.
        return decode_image(source, name).shape[:2]
    return (width, height) if turned else (height, width)


def resize_image(
    image: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Resizes bilinearly, with antialiasing when it shrinks, as torchvision does PIL images."""
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _name_of(source: ImageSource) -> str:
    if isinstance(source, np.ndarray):
        return "array"
    if isinstance(source, Image.Image):
        return "from PIL"
    return "from bytes" if isinstance(source, bytes) else os.fspath(source) or "''"


class _Read(NamedTuple):
    """The content of an image.

    Attributes:
      pixels: of any dtype, with 1 or 3 channels.
      file_format: of an encoded image, '' for others.
      is_upper_byte: whether the file has colors of 16 bits, of which these are the upper 8.
      opaque: of a mask with transparency, where it is not fully transparent; else None.
    """

    pixels: Shaped[np.ndarray, "h w c"]
    file_format: str = ""
    is_upper_byte: bool = False
    opaque: Bool[np.ndarray, "h w"] | None = None


# Values of `part` in `_read`.
_LOWER, _MASK = "lower bytes", "mask"


def _read(
    source: ImageSource, name: str, most_pixels: int | None = None, *, part: str = ""
) -> _Read:
    """Reads an image.

    `part` is `_LOWER` for the lower bytes of colors of 16 bits, and `_MASK` for a mask; else ''.
    """
    if isinstance(source, np.ndarray):
        return _Read(_drop_alpha(source, name))
    try:
        if isinstance(source, Image.Image):
            return _Read(_drop_alpha(_pixels(source), name))
        with contextlib.ExitStack() as stack:
            if isinstance(source, bytes):
                opened = io.BytesIO(source)
            else:
                require_regular_file(Path(source), f"image {name}")
                opened = stack.enter_context(Path(source).open("rb"))
            with _pillow_warnings():
                image = stack.enter_context(Image.open(opened, formats=_FORMATS))
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise Image.DecompressionBombError(
                    f"{image.width} x {image.height}, expected at most {most_pixels} pixels"
                )
            rawmodes = [_rawmode(tile) for tile in image.tile]
            is_upper_byte = bool(rawmodes) and all(";16" in rawmode for rawmode in rawmodes)
            is_upper_byte &= image.mode in ("RGB", "RGBA", "RGBX")
            if part == _LOWER:
                _read_lower_bytes(image, name)
            pixels = _drop_alpha(_pixels(image), name)
            opaque = None
            if part == _MASK and image.has_transparency_data:
                with _pillow_warnings():
                    upright = ImageOps.exif_transpose(image)
                opaque = np.asarray(upright.convert("RGBA"))[..., 3] > 0
            return _Read(pixels, image.format or "", is_upper_byte, opaque)
    except InputError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise TooManyPixelsError(f"image {name}: too many pixels to be taken ({error})") from error
    except UnidentifiedImageError as error:
        raise UnknownFormatError(
            f"image {name}: not an image of a known format, expected one of {', '.join(_FORMATS)}"
        ) from error
    except Exception as error:  # Pillow's decoders raise almost anything on a damaged file.
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"image {name}: cannot be read ({error.strerror})") from error
        raise InputError(f"image {name}: damaged or cut off ({error})") from error


def _rawmode(tile: Any) -> str:
    """Pillow's name for the pixels of a part of a file."""
    arguments = tile[3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _read_lower_bytes(image: ImageFile.ImageFile, name: str) -> None:
    """Makes Pillow read the lower bytes of an opened file's colors of 16 bits."""
    tiles = []
    for tile in image.tile:
        codec, extents, offset, arguments = tile
        lower = _LOW_BYTES.get(_rawmode(tile))
        if lower is None:
            raise InputError(
                f"image {name}: 16 bits in Pillow's form {_rawmode(tile)}, of which only 8 can be "
                "read; expected gray or color without transparency for a white level"
            )
        changed = (lower, *arguments[1:]) if isinstance(arguments, tuple) else lower
        tiles.append(ImageFile._Tile(codec, extents, offset, changed))
    image.tile = tiles


@contextlib.contextmanager
def _pillow_warnings() -> Iterator[None]:
    """Turns the warning of too many pixels into an error, and ignores those of odd metadata."""
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _pixels(image: Image.Image) -> Shaped[np.ndarray, "..."]:
    is_pgm = image.format == "PPM"
    image.load()  # Slow, therefore outside the lock.
    with _pillow_warnings():
        image = ImageOps.exif_transpose(image)
    if image.mode == "I" and is_pgm:
        # Pillow scales PGM of more than 8 bits to 16 and holds it in 32.
        return np.asarray(image).astype(np.uint16)
    if image.mode.startswith(("I", "F")):
        return np.asarray(image)
    if image.mode == "P":
        # Through RGBA, so that a transparent color is not mixed in.
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _drop_alpha(array: Shaped[np.ndarray, "..."], name: str) -> Shaped[np.ndarray, "h w c"]:
    shape_fits = array.ndim == 2 or (array.ndim == 3 and 1 <= array.shape[2] <= 4)
    if not shape_fits or 0 in array.shape:
        raise InputError(f"image {name}: shape {array.shape}, expected [h, w] or [h, w, 1 to 4]")
    if array.ndim == 2:
        return array[..., None]
    return array[..., : 1 if array.shape[2] < 3 else 3]


def _to_eight_bits(
    array: Shaped[np.ndarray, "h w c"], name: str, white_level: int
) -> UInt8[np.ndarray, "h w c"]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # In either byte order.
        rounded = (array.astype(np.uint32) * 255 + white_level // 2) // white_level
        return np.minimum(rounded, 255).astype(np.uint8)
    if array.dtype.kind == "f":
        # `not (>= and <=)` also catches NaN.
        if not (array.min() >= 0 and array.max() <= 1):
            raise InputError(
                f"image {name}: floats outside [0, 1], expected them in that range or uint8"
            )
        return np.rint(array * 255).astype(np.uint8)
    raise InputError(
        f"image {name}: dtype {array.dtype}, expected uint8, uint16, bool or floats in [0, 1]"
    )


def resize_map(
    cells: Float32[np.ndarray, "c d"],
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> Float32[np.ndarray, "h w"]:
    """Resizes one map on the host, bilinearly, with antialiasing when it shrinks.

    Args:
      cells: the map.
      size: height and width of the result.
      box: left, top, right and bottom of the part to resize, in cells; None for the whole map.
    """
    height, width = size
    resized = Image.fromarray(cells).resize((width, height), Image.Resampling.BILINEAR, box)
    return np.asarray(resized)
