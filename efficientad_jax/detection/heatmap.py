"""Anomaly maps as colors over the image, and which file each picture goes to."""

import io
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from efficientad_jax.data.files import is_heat_map, list_images
from efficientad_jax.errors import InputError
from efficientad_jax.storage.atomic import write_atomically

# Default range of the colors, in the unit of a detector's maps.
LOW, HIGH = 0.05, 0.25
# The end of a picture's file name, which distinguishes it from an image.
PICTURE_SUFFIX = "_heatmap.png"

# Of the lines around regions, and of those around true defects: cyan, the one hue that `inferno`
# does not hold.
LINE_COLOR = (0, 229, 255)
# A line is so many times thinner than the longer side of the picture is long.
_SIDES_PER_LINE = 300

_STRIP = 64  # Rows of an image that are colored at a time.

# Takes a line for people, of an image that cannot be used.
Complain = Callable[[str], None]


@cache
def palette() -> UInt8[np.ndarray, "256 4"]:
    """The 256 colors of a heat map, as RGBA: matplotlib's `inferno` with growing alpha.

    The lightness of `inferno` grows evenly, so equal steps of the anomaly map look equal, also
    in grayscale print and to color-blind readers. Its darkest quarter is left out: over a
    photograph it would read as shadow. Alpha grows from 0 to 255, so that normal regions show
    the image as it is; it grows as the square root, so that a faint response is seen at all.
    """
    colors = matplotlib.colormaps["inferno"](np.linspace(0.25, 1.0, 256))
    colors[:, 3] = np.sqrt(np.linspace(0.0, 1.0, 256))
    return np.round(colors * 255).astype(np.uint8)


def color_indices(
    anomaly_map: Float[np.ndarray, "h w"], low: float, high: float
) -> UInt8[np.ndarray, "h w"]:
    """Rows of `palette` for a map: 0 at `low` and below, 255 at `high` and above.

    Raises:
      InputError: `low` is not below `high`.
    """
    if not low < high:
        raise InputError(f"Heat map: the range is {low:g} to {high:g}, expected low < high.")
    fraction = np.clip((anomaly_map - low) / (high - low), 0.0, 1.0)
    return np.round(fraction * 255).astype(np.uint8)


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    anomaly_map: Float[np.ndarray, "h w"],
    *,
    low: float,
    high: float,
    opacity: float = 0.5,
    out: UInt8[np.ndarray, "h w 3"] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with its anomaly map blended over it.

    Args:
      image: uint8 RGB.
      anomaly_map: of the image's height and width, in the unit of `low` and `high`.
      low: value from which color begins; the image is untouched where the map is below.
      high: value at which the color ends, bright yellow.
      opacity: share of the color where the map reaches `high`, in [0, 1].
      out: the array to write to and return; None for a new one.

    Raises:
      InputError: `low` is not below `high`.
    """
    blended = np.empty_like(image) if out is None else out
    # In strips: the floats of a whole photograph would take ten times its memory.
    for start in range(0, len(image), _STRIP):
        rows = slice(start, start + _STRIP)
        colors = palette()[color_indices(anomaly_map[rows], low, high)].astype(np.float32)
        alpha = opacity * colors[..., 3:] / 255
        blended[rows] = np.round((1 - alpha) * image[rows] + alpha * colors[..., :3])
    return blended


Box = tuple[int, int, int, int]


def draw_boxes(
    pixels: UInt8[np.ndarray, "h w ..."], boxes: Sequence[Box], color: int | tuple[int, int, int]
) -> None:
    """Draws the outlines of boxes into a picture, outside of the boxes where there is room.

    Args:
      pixels: the picture, which is changed: RGB, or indices of colors.
      boxes: left, top, width and height of each, in pixels.
      color: value of the lines.
    """
    height, width = pixels.shape[:2]
    line = max(1, round(max(height, width) / _SIDES_PER_LINE))
    for x, y, box_width, box_height in boxes:
        top, bottom = max(y - line, 0), min(y + box_height + line, height)
        left, right = max(x - line, 0), min(x + box_width + line, width)
        pixels[top : top + line, left:right] = color
        pixels[bottom - line : bottom, left:right] = color
        pixels[top:bottom, left : left + line] = color
        pixels[top:bottom, right - line : right] = color


def encode_heat(
    anomaly_map: Float[np.ndarray, "h w"], low: float, high: float, *, boxes: Sequence[Box] = ()
) -> bytes:
    """A PNG of only the colors, transparent where the map is `low`: to lie over the image.

    Args:
      anomaly_map: in the unit of `low` and `high`.
      low: as in `overlay`.
      high: as in `overlay`.
      boxes: are drawn in `LINE_COLOR`, as in `draw_boxes`.

    Raises:
      InputError: `low` is not below `high`.
    """
    # A palette takes a quarter of the bytes of RGBA.
    indices, colors = color_indices(anomaly_map, low, high), palette()
    if boxes:
        last = len(colors) - 1
        indices = np.minimum(indices, last - 1)
        draw_boxes(indices, boxes, last)
        colors = np.concatenate([colors[:last], np.array([[*LINE_COLOR, 255]], np.uint8)])
    picture = Image.fromarray(indices)
    picture.putpalette(colors.tobytes(), rawmode="RGBA")
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    return encoded.getvalue()


def save_picture(
    path: str | os.PathLike[str],
    image: UInt8[np.ndarray, "h w 3"],
    maps: Sequence[Float[np.ndarray, "h w"]],
    *,
    low: float,
    high: float,
    opacity: float = 0.5,
    boxes: Sequence[Box] = (),
) -> None:
    """Writes a PNG: the image, and to its right one overlay for each of `maps`.

    Args:
      path: where to write; the folder is created if needed, and the file appears complete or not
        at all.
      image: uint8 RGB.
      maps: anomaly maps of the image's size, e.g. only the combined one, or the local, the
        global and the combined one as in the paper's Figure 5.
      low: as in `overlay`, the same for all maps.
      high: as in `overlay`.
      opacity: as in `overlay`.
      boxes: are drawn over each overlay in `LINE_COLOR`, as in `draw_boxes`.

    Raises:
      InputError: `low` is not below `high`.
    """
    height, width, _ = image.shape
    picture = np.empty((height, (1 + len(maps)) * width, 3), np.uint8)
    picture[:, :width] = image
    for i, anomaly_map in enumerate(maps, start=1):
        part = picture[:, i * width : (i + 1) * width]
        overlay(image, anomaly_map, low=low, high=high, opacity=opacity, out=part)
        draw_boxes(part, boxes, LINE_COLOR)
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, format="PNG")
    write_atomically(path, encoded.getvalue())


class Task(NamedTuple):
    """An image to score.

    Attributes:
      image: its file.
      picture: file for its heat map, None for no picture.
      name: its path inside the folder that the user named; None for only its file name.
    """

    image: Path
    picture: Path | None
    name: Path | None = None


def plan_pictures(
    sources: Sequence[Path],
    output: Path | None,
    complain: Complain,
    *,
    draws_pictures: bool = True,
) -> tuple[list[Task], int]:
    """The images named or found in folders, and where the picture of each goes.

    `photo.jpg` gets `photo_heatmap.png`; where two images of a folder have that name but for its
    ending, the second gets `photo.png_heatmap.png`.

    Args:
      sources: files and folders. Pictures of an earlier run are passed over.
      output: folder for the pictures, below it as the images are below the folders named; None
        for next to the images.
      complain: takes a line for each source that cannot be used.
      draws_pictures: whether images get pictures at all.

    Returns:
      The tasks, and how many sources or images were complained of.
    """
    tasks: list[Task] = []
    taken: dict[Path, Path] = {}
    failed = 0
    for source in sources:
        try:
            is_folder = source.is_dir()
            images = list_images(source) if is_folder else [source]
        except (InputError, ValueError) as error:  # ValueError: a zero byte in the name
            complain(str(InputError(str(error))))
            failed += 1
            continue
        root = source if is_folder else source.parent
        for image in images:
            if is_heat_map(image):
                continue
            if not draws_pictures:
                tasks.append(Task(image, None, image.relative_to(root)))
                continue
            for stem in (image.stem, image.name):
                picture = image.with_name(stem + PICTURE_SUFFIX)
                if output is not None:
                    picture = output / picture.relative_to(root)
                if picture not in taken:
                    break
            if taken.setdefault(picture, image) != image:
                complain(
                    str(
                        InputError(
                            f"image {image}: its picture would replace {picture}, that of "
                            f"{taken[picture]}; give another --output for one of them"
                        )
                    )
                )
                failed += 1
                continue
            tasks.append(Task(image, picture, image.relative_to(root)))
    return tasks, failed
