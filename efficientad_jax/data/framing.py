"""Which part of an image the networks see: a region of interest, and pixels that are ignored.

The region of interest is cut out before the image is resized. Ignored pixels get one constant
color after that, and with them every pixel of the resized image that depends on one of them:
nothing that is computed from the resized image depends on the ignored pixels.
"""

import base64
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8
from PIL import Image

from efficientad_jax.config import DatasetConfig
from efficientad_jax.data.decoding import decode_image, resize_image, resize_map
from efficientad_jax.data.image_rows import ImageRows
from efficientad_jax.errors import InputError

# The color of ignored pixels: ImageNet's mean, which the networks' input normalization maps to 0.
FILL = np.array([124, 116, 104], np.uint8)

# Of a mask in `detector.json`.
_MOST_MASK_PIXELS = 1 << 28

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
    """Which part of an image counts.

    Attributes:
      box: the region of interest, None for the whole image.
      ignored: True on the pixels to ignore, at the size of the whole image; None for no mask.
    """

    box: Box | None = None
    ignored: Bool[np.ndarray, "h w"] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all of every image counts."""
        return self.box is None and self.ignored is None

    @property
    def ignored_in_box(self) -> Bool[np.ndarray, "h w"] | None:
        """The ignored pixels of the region of interest."""
        return None if self.ignored is None else cut_out(self, self.ignored)

    @property
    def ignored_fraction(self) -> float:
        """The ignored fraction of the region of interest."""
        ignored = self.ignored_in_box
        return 0.0 if ignored is None else float(ignored.mean())


WHOLE = Framing()


def read_framing(dataset: DatasetConfig) -> Framing:
    """The framing that a configuration describes.

    Raises:
      InputError: the mask cannot be read or leaves nothing to look at, or the region of interest
        does not lie inside it.
    """
    box = _parsed_box(dataset.region_of_interest) if dataset.region_of_interest else None
    if not dataset.ignore_mask:
        return Framing(box) if box else WHOLE
    path = Path(dataset.ignore_mask).expanduser()
    name = f"config.dataset.ignore_mask = {dataset.ignore_mask!r}"
    if path.is_dir():
        raise InputError(
            f"{name}: a folder, expected an image file; one mask is for all images, see "
            "docs/ignore.md"
        )
    values = decode_image(path, f"{path} (config.dataset.ignore_mask)").max(2)
    # Half of the largest value, as masks may count from 0 to 1 or have gray borders.
    framing = Framing(box, values < max(int(values.max()), 1) / 2)
    _check_size(framing, values.shape, f"{path} (config.dataset.ignore_mask)")
    if framing.ignored_fraction == 1:
        where = f" inside the region of interest {box}" if box else ""
        raise InputError(
            f"{name}: ignores all pixels{where}, expected black (0) only where images are ignored, "
            "and white (255) elsewhere"
        )
    return framing


def _parsed_box(text: str) -> Box:
    return Box(*map(int, text.split(",")))


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
    _check_size(framing, size, name or "array")


def _check_size(framing: Framing, size: tuple[int, ...], name: str) -> None:
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


def network_input(
    framing: Framing, image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], *, name: str = ""
) -> UInt8[np.ndarray, "_h _w 3"]:
    """Cuts out the region of interest, resizes it and fills ignored pixels.

    Args:
      framing: of the detector or the dataset.
      image: the whole image.
      size: height and width of the networks' input.
      name: of the image, for messages.

    Raises:
      InputError: the image has another size than the mask, or does not contain the region.
    """
    if framing.is_whole:
        return resize_image(image, *size)
    check_image_size(framing, image.shape[:2], name)
    return fill(resize_image(cut_out(framing, image), *size), ignored_pixels(framing, size))


def fill(
    image: UInt8[np.ndarray, "h w 3"], ignored: Bool[np.ndarray, "h w"] | None
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with the constant color on ignored pixels."""
    return image if ignored is None else np.where(ignored[..., None], FILL, image)


@lru_cache(maxsize=16)
def ignored_pixels(
    framing: Framing, size: tuple[int, int]
) -> Bool[np.ndarray, "{size[0]} {size[1]}"] | None:
    """The pixels that depend on an ignored one after the region was resized to this size.

    None where there is no mask.
    """
    ignored = framing.ignored_in_box
    if ignored is None or ignored.shape == size:
        return ignored
    # No weight of bilinear resizing is negative: all that depends on an ignored pixel is above 0.
    return resize_map(np.asarray(ignored, np.float32), size) > 0


def seen_rows(framing: Framing, image: ImageRows, name: str = "") -> ImageRows:
    """The region of interest of an image that is read in parts.

    Raises:
      InputError: as `network_input`.
    """
    if framing.is_whole:
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
    framing: Framing, cells: Float32[np.ndarray, "c d"], size: tuple[int, int]
) -> Float32[np.ndarray, "h w"]:
    """A map of what the networks saw, resized and put in its place in the image.

    Args:
      framing: of the detector.
      cells: the map, of any size.
      size: height and width of the whole image.

    Returns:
      The map at the size of the image, 0 outside of the region of interest.
    """
    return put_back(framing, resize_map(cells, seen_size(framing, size)), size)


def put_back(
    framing: Framing, values: Shaped[np.ndarray, "h w"], size: tuple[int, int]
) -> Shaped[np.ndarray, "_h _w"]:
    """A map of the region of interest at its place in a map of the whole image, 0 elsewhere."""
    if framing.box is None:
        return values
    whole = np.zeros(size, values.dtype)
    cut_out(framing, whole)[:] = values
    return whole


def framing_fields(framing: Framing) -> dict[str, Any]:
    """A framing as JSON has it: the mask as a PNG file in base64."""
    mask = None
    if framing.ignored is not None:
        encoded = io.BytesIO()
        Image.fromarray(~framing.ignored).save(encoded, "PNG", optimize=True)
        mask = base64.b64encode(encoded.getvalue()).decode()
    return {"region_of_interest": framing.box, "ignore_mask": mask}


def checked_framing(stored: dict[str, Any] | None) -> Framing:
    """A framing from `framing_fields`, which may come from anyone; None for the whole image.

    Raises:
      InputError: the mask is not an image.
      KeyError: a field is missing.
      TypeError: a field is of another type.
      ValueError: a field is out of range.
    """
    if stored is None:
        return WHOLE
    box, mask = stored["region_of_interest"], stored["ignore_mask"]
    if box is not None:
        box = Box(*box)
        if not all(type(side) is int for side in box) or min(box[:2]) < 0 or min(box[2:]) < 1:
            raise ValueError(f"no region of interest: {str(box)[:100]}")
    if mask is None:
        return Framing(box)
    encoded = base64.b64decode(mask, validate=True)
    ignored = decode_image(encoded, "ignore mask", _MOST_MASK_PIXELS)[..., 0] == 0
    framing = Framing(box, ignored)
    _check_size(framing, ignored.shape, "ignore mask")
    if framing.ignored_fraction == 1:
        raise ValueError("the mask ignores all pixels")
    return framing
