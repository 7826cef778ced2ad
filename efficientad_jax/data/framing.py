"""How an image becomes the networks' input: region of interest, ignored pixels, proportions.

The region of interest is cut out before the image is resized, padded or cut into tiles. Ignored
pixels get one constant color after that, and with them every pixel of the resized image that
depends on one of them: nothing that is computed from the resized image depends on the ignored
pixels. Padding has that color too, and is ignored. A framing may have a mask for all images, and
each image may have its own in addition.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8

from efficientad_jax.config import LARGEST_SIDE, SMALLEST_SIDE, Fit
from efficientad_jax.data.decoding import resize_image, resize_map
from efficientad_jax.data.image_rows import ImageRows
from efficientad_jax.errors import InputError

# The color of ignored pixels: ImageNet's mean, which the networks' input normalization maps to 0.
FILL = np.array([124, 116, 104], np.uint8)

# Images whose proportions differ by less keep them well enough in an input of one size.
_SAME_PROPORTIONS = 1.05

_Pixels = TypeVar("_Pixels", bound=np.ndarray)


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int

    def __str__(self) -> str:
        """As in `config.dataset.region_of_interest`."""
        return ",".join(map(str, self))


# Compared and hashed by identity, so that what is computed from a mask can be cached.
@dataclass(frozen=True, eq=False)
class Framing:
    """Which part of an image counts, and how it becomes the networks' input.

    Attributes:
      box: the region of interest, None for the whole image.
      ignored: True on the pixels to ignore, at the size of the whole image; None for no mask.
      fit: 'resize', 'pad' or 'tile', see `config.ModelConfig`.
      usual_size: with 'pad', height and width of the region of interest of the training images, if
        it is the same of all; else None.
    """

    box: Box | None = None
    ignored: Bool[np.ndarray, "h w"] | None = None
    fit: Fit = "resize"
    usual_size: tuple[int, int] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether every image is only resized."""
        return self.box is None and self.ignored is None and self.fit == "resize"

    @property
    def ignored_in_box(self) -> Bool[np.ndarray, "h w"] | None:
        """The ignored pixels of the region of interest."""
        return None if self.ignored is None else cut_out(self, self.ignored)

    @property
    def ignored_fraction(self) -> float:
        """The ignored fraction of the region of interest."""
        ignored = self.ignored_in_box
        return 0.0 if ignored is None else float(ignored.mean())


PLAIN = Framing()


def check_image_size(framing: Framing, size: tuple[int, int], name: str = "") -> None:
    """Checks that an image of this height and width suits.

    Raises:
      InputError: it is not as large as the mask, or the region of interest lies outside of it.
    """
    ignored = framing.ignored
    if ignored is not None and ignored.shape != size:
        raise InputError(
            f"image {name or 'array'}: {size[0]}x{size[1]} pixels, expected the "
            f"{ignored.shape[0]}x{ignored.shape[1]} of the ignore mask"
        )
    check_box(framing, size, name or "array")


def check_box(framing: Framing, size: tuple[int, int], name: str) -> None:
    """Checks that the region of interest lies in an image of this height and width.

    Raises:
      InputError: it does not.
    """
    box = framing.box
    if box and (box.top + box.height > size[0] or box.left + box.width > size[1]):
        raise InputError(
            f"image {name}: {size[1]} pixels wide and {size[0]} high, expected the region of "
            f"interest {box} (left, top, width, height) to lie inside"
        )


def cut_out(framing: Framing, pixels: _Pixels) -> _Pixels:
    """The region of interest of an image or of a mask."""
    box = framing.box
    if box is None:
        return pixels
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]  # pyright: ignore


def seen_size(framing: Framing, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the part that counts of an image of this size."""
    return size if framing.box is None else (framing.box.height, framing.box.width)


class Place(NamedTuple):
    """Where in the networks' input an image lies, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return np.s_[self.top : self.top + self.height, self.left : self.left + self.width]


def place_in_input(framing: Framing, seen: tuple[int, int], size: tuple[int, int]) -> Place:
    """Where the region of interest lies in the input after it is resized.

    Args:
      framing: of the detector or the dataset.
      seen: height and width of the region of interest.
      size: height and width of the networks' input.

    Returns:
      The place. Images that are cut into tiles are only enlarged, if a side is shorter than a
      tile's.
    """
    if framing.fit == "tile":
        return Place(0, 0, max(seen[0], size[0]), max(seen[1], size[1]))
    if framing.fit == "resize":
        return Place(0, 0, *size)
    scale = min(size[0] / seen[0], size[1] / seen[1])
    height, width = (min(max(round(scale * seen[i]), 1), size[i]) for i in (0, 1))
    return Place((size[0] - height) // 2, (size[1] - width) // 2, height, width)


def input_sizes(
    framing: Framing, seen: Sequence[tuple[int, int]], size: tuple[int, int]
) -> list[tuple[int, int]]:
    """Height and width of each image that `network_input` returns; see `place_in_input`."""
    if framing.fit != "tile":
        return [size] * len(seen)
    places = (place_in_input(framing, each, size) for each in seen)
    return [(place.height, place.width) for place in places]


def proportional_size(seen: Sequence[tuple[int, int]], like: tuple[int, int]) -> tuple[int, int]:
    """The size of a networks' input with the proportions of images.

    Args:
      seen: height and width of each.
      like: a size with as many pixels.

    Returns:
      The multiples of 32 that are nearest to the median of the images' proportions, neither below
      nor above the limits of the networks.
    """
    ratio = float(np.median([height / width for height, width in seen]))
    pixels = like[0] * like[1]

    def nearest(side: float) -> int:
        return min(max(32 * round(side / 32), SMALLEST_SIDE), LARGEST_SIDE)

    # The shorter side first: a limit that it meets is made up for by the other.
    shorter = nearest(math.sqrt(pixels * min(ratio, 1 / ratio)))
    is_limit = shorter == SMALLEST_SIDE
    longer = nearest(pixels / shorter if is_limit else math.sqrt(pixels * max(ratio, 1 / ratio)))
    return (shorter, longer) if ratio < 1 else (longer, shorter)


def fit_for(seen: Sequence[tuple[int, int]]) -> Fit:
    """How images of these heights and widths fit into an input: 'pad' if proportions differ."""
    ratios = [height / width for height, width in seen]
    return "pad" if max(ratios) > _SAME_PROPORTIONS * min(ratios) else "resize"


def network_input(
    framing: Framing,
    image: UInt8[np.ndarray, "h w 3"],
    size: tuple[int, int],
    *,
    name: str = "",
    own_mask: Bool[np.ndarray, "_h _w"] | None = None,
) -> UInt8[np.ndarray, "_h _w 3"]:
    """Cuts out the region of interest, resizes or pads it and fills ignored pixels.

    Args:
      framing: of the detector or the dataset.
      image: the whole image.
      size: height and width of the networks' input.
      name: of the image, for messages.
      own_mask: True on the pixels of the input that the image's own mask ignores, of
        `own_mask_in_input`; None without one.

    Returns:
      The input, or what is cut into tiles.

    Raises:
      InputError: the image has another size than the mask, or does not contain the region.
    """
    if framing.is_plain:
        return fill(resize_image(image, *size), own_mask)
    check_image_size(framing, image.shape[:2], name)
    part = cut_out(framing, image)
    seen = part.shape[:2]
    place = place_in_input(framing, seen, size)
    resized = resize_image(part, place.height, place.width)
    if framing.fit == "pad":
        canvas = np.empty((*size, 3), np.uint8)
        canvas[:] = FILL
        canvas[place.window] = resized
        resized = canvas
    return fill(fill(resized, ignored_pixels(framing, size, seen)), own_mask)


def fill(
    image: UInt8[np.ndarray, "h w 3"], ignored: Bool[np.ndarray, "h w"] | None
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with the constant color on ignored pixels."""
    return image if ignored is None else np.where(ignored[..., None], FILL, image)


@lru_cache(maxsize=256)
def ignored_pixels(
    framing: Framing, size: tuple[int, int], seen: tuple[int, int]
) -> Bool[np.ndarray, "_h _w"] | None:
    """The pixels of the input that depend on an ignored pixel or are padding; None for none.

    Args:
      framing: of the detector or the dataset.
      size: height and width of the networks' input.
      seen: height and width of the region of interest.
    """
    place = place_in_input(framing, seen, size)
    masked = masked_pixels(framing, (place.height, place.width))
    if framing.fit != "pad":
        return masked
    ignored = np.ones(size, bool)
    ignored[place.window] = False if masked is None else masked
    return ignored


@lru_cache(maxsize=16)
def masked_pixels(
    framing: Framing, size: tuple[int, int]
) -> Bool[np.ndarray, "{size[0]} {size[1]}"] | None:
    """The pixels that depend on an ignored one after the region was resized to this size.

    None where there is no mask.
    """
    ignored = framing.ignored_in_box
    return None if ignored is None else resized_mask(ignored, size)


def resized_mask(
    ignored: Bool[np.ndarray, "_h _w"], size: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """The pixels that depend on an ignored one after an image was resized to this size."""
    if ignored.shape == size:
        return ignored
    # No weight of bilinear resizing is negative: all that depends on an ignored pixel is above 0.
    return resize_map(np.asarray(ignored, np.float32), size) > 0


def seen_rows(framing: Framing, image: ImageRows, name: str = "") -> ImageRows:
    """The region of interest of an image that is read in parts.

    Raises:
      InputError: as `network_input`.
    """
    if framing.is_plain:
        return image
    check_image_size(framing, image.size, name)
    box = framing.box
    if box is None:
        return image

    def read(start: int, stop: int) -> UInt8[np.ndarray, "r w 3"]:
        rows = image.read(box.top + start, box.top + stop)
        return rows[:, box.left : box.left + box.width]

    return ImageRows((box.height, box.width), read)


def filled_rows(image: ImageRows, ignored: Bool[np.ndarray, "h w"] | None) -> ImageRows:
    """The image with the constant color on ignored pixels, read in parts."""
    if ignored is None:
        return image

    def read(start: int, stop: int) -> UInt8[np.ndarray, "r w 3"]:
        return fill(image.read(start, stop), ignored[start:stop])

    return ImageRows(image.size, read)


def map_of_image(
    framing: Framing,
    cells: Float32[np.ndarray, "c d"],
    size: tuple[int, int],
    *,
    input_size: tuple[int, int],
) -> Float32[np.ndarray, "h w"]:
    """A map of the networks' input, resized and put in its place in the image.

    Args:
      framing: of the detector; its images are not cut into tiles.
      cells: the map, of any size.
      size: height and width of the whole image.
      input_size: height and width of the networks' input.

    Returns:
      The map at the size of the image, 0 outside of the region of interest.
    """
    seen = map_of_region(framing, cells, seen_size(framing, size), input_size=input_size)
    return put_back(framing, seen, size)


def map_of_region(
    framing: Framing,
    cells: Float32[np.ndarray, "c d"],
    seen: tuple[int, int],
    *,
    input_size: tuple[int, int],
) -> Float32[np.ndarray, "h w"]:
    """As `map_of_image`, of the region of interest and at its size `seen`."""
    if framing.fit != "pad":
        return resize_map(cells, seen)
    place = place_in_input(framing, seen, input_size)
    down, across = (cells.shape[i] / input_size[i] for i in (0, 1))
    left, right = place.left * across, (place.left + place.width) * across
    top, bottom = place.top * down, (place.top + place.height) * down
    return resize_map(cells, seen, (left, top, right, bottom))


def put_back(
    framing: Framing, values: Shaped[np.ndarray, "h w"], size: tuple[int, int]
) -> Shaped[np.ndarray, "_h _w"]:
    """A map of the region of interest at its place in a map of the whole image, 0 elsewhere."""
    if framing.box is None:
        return values
    whole = np.zeros(size, values.dtype)
    cut_out(framing, whole)[:] = values
    return whole


def stack_images(
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]],
) -> UInt8[np.ndarray, "n h w 3"]:
    """Images in one array; those that are smaller than others lie in its upper left corner."""
    sizes = {image.shape for image in images}
    if len(sizes) == 1:
        return np.stack(images)
    height, width, _ = np.max(list(sizes), axis=0)
    stacked = np.empty((len(images), height, width, 3), np.uint8)
    stacked[:] = FILL
    for place, image in zip(stacked, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return stacked
