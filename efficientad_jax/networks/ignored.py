"""Pixels that the networks do not see, and the values of their outputs that count for nothing.

An ignored pixel has a constant color wherever a network sees the image. An output whose whole
33x33 patch is ignored describes nothing: it is not mined, and counted in no statistic or score.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from efficientad_jax.data.framing import FILL, Framing, ignored_pixels, masked_pixels
from efficientad_jax.errors import InputError
from efficientad_jax.networks.pdn import MARGIN, RECEPTIVE_FIELD, STRIDE, output_size
from efficientad_jax.networks.preprocessing import to_unit_range
from efficientad_jax.networks.resize import bilinear_matrix


class Ignored(NamedTuple):
    """The ignored parts of each image, or of all images where `m` is 1.

    Attributes:
      pixels: True on the ignored pixels of the networks' input.
      values: True on the values of a map, or on the outputs, that do not count.
    """

    pixels: Bool[Array | np.ndarray, "m h w"]
    values: Bool[Array | np.ndarray, "m oh ow"]

    def of(self, images: Int[Array | np.ndarray, " b"] | slice) -> "Ignored":
        """The ignored parts of some of the images."""
        return self if len(self.pixels) == 1 else jax.tree.map(lambda x: x[images], self)


def ignored_in_images(
    framing: Framing,
    seen: Sequence[tuple[int, int]] | None,
    input_size: tuple[int, int],
    *,
    padding: bool,
    upsample_first: bool = False,
    own_masks: Bool[np.ndarray, "n h w"] | None = None,
) -> Ignored | None:
    """The ignored parts of images that are resized or padded.

    Args:
      framing: of the detector or the dataset.
      seen: height and width of the region of interest of each image; None for the usual size.
      input_size: of the networks.
      padding: see `ignored_places`.
      upsample_first: see `ignored_places`.
      own_masks: True on the pixels of each input that its own mask ignores, of
        `own_mask_in_input`; None without such masks.

    Returns:
      None if nothing is, and for images that are cut into tiles; one for all images if it is the
      same.

    Raises:
      InputError: no value of an image counts, or padding depends on sizes that are not given.
    """
    if framing.fit == "tile" or (framing.is_plain and own_masks is None):
        return None
    if framing.fit == "pad" and seen is None:
        if framing.usual_size is None:
            raise InputError(
                "detector: pads images, and its training images had several sizes, expected one "
                "size; train with config.model.fit = 'resize'"
            )
        seen = [framing.usual_size]
    seen = seen or [input_size]  # which does not matter where images are resized
    rule = (padding, upsample_first)
    is_same_of_all = framing.fit != "pad" or len(set(seen)) == 1
    if own_masks is not None:
        seen = list(seen[:1]) * len(own_masks) if is_same_of_all else seen
        parts = _places_with_own_masks(framing, seen, own_masks, rule=rule)
    elif is_same_of_all:
        return _places_of_size(framing, seen[0], input_size, rule=rule)
    else:
        parts = [_places_of_size(framing, size, input_size, rule=rule) for size in seen]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def ignored_in_tiles(framing: Framing, size: tuple[int, int]) -> Ignored | None:
    """The ignored parts of images of this size that are cut into tiles, and of their outputs.

    Raises:
      InputError: no output counts.
    """
    pixels = masked_pixels(framing, size)
    if pixels is None:
        return None
    # Tiles may reach up to 3 pixels beyond an image.
    rows, columns = (-(-side // STRIDE) - 2 * MARGIN for side in size)
    values = ignored_outputs(pixels, (rows, columns))
    if values.all():
        raise InputError("ignore mask: every patch is ignored, expected pixels to look at")
    return Ignored(pixels[None], values[None])


@lru_cache(maxsize=256)
def _places_of_size(
    framing: Framing,
    seen: tuple[int, int],
    input_size: tuple[int, int],
    *,
    rule: tuple[bool, bool],
) -> Ignored | None:
    pixels = ignored_pixels(framing, input_size, seen)
    if pixels is None:
        return None
    return ignored_places(pixels, padding=rule[0], upsample_first=rule[1])


def _places_with_own_masks(
    framing: Framing,
    seen: Sequence[tuple[int, int]],
    own_masks: Bool[np.ndarray, "n h w"],
    *,
    rule: tuple[bool, bool],
) -> list[Ignored]:
    """The ignored parts of each image. They are not kept, as the masks are as many as images."""
    parts = []
    for number, (own_mask, size) in enumerate(zip(own_masks, seen, strict=True), 1):
        common = ignored_pixels(framing, own_mask.shape, size)
        pixels = own_mask if common is None else own_mask | common
        try:
            parts.append(ignored_places(pixels, padding=rule[0], upsample_first=rule[1]))
        except InputError as error:
            raise InputError(f"image {number} of {len(own_masks)}, by name: {error}") from error
    return parts


def ignored_places(
    pixels: Bool[np.ndarray, "h w"], *, padding: bool, upsample_first: bool = False
) -> Ignored:
    """Finds the values of a map that count for nothing.

    Args:
      pixels: True on the ignored pixels of the networks' input.
      padding: whether the PDNs are padded.
      upsample_first: whether maps are resized to the input first. A value then also counts for
        nothing if it depends on such an output.

    Raises:
      InputError: no value counts.
    """
    height, width = output_size(*pixels.shape, padding=padding)
    values = ignored_outputs(pixels, (height, width), MARGIN if padding else 0)
    if values.all():
        raise InputError(
            f"ignore mask: at the {pixels.shape[0]}x{pixels.shape[1]} pixels of the networks' "
            "input every patch is ignored, expected pixels to look at"
        )
    if upsample_first:
        rows, columns = (
            bilinear_matrix(a, b) for a, b in zip(values.shape, pixels.shape, strict=True)
        )
        values = rows @ values.astype(np.float32) @ columns.T > 0
    return Ignored(pixels[None], values[None])


def ignored_outputs(
    pixels: Bool[np.ndarray, "h w"], shape: tuple[int, int], margin: int = 0
) -> Bool[np.ndarray, "{shape[0]} {shape[1]}"]:
    """The outputs of which every pixel is ignored, or lies outside of the image.

    Args:
      pixels: True on ignored pixels.
      shape: rows and columns of the outputs.
      margin: number of outputs on each side before those of an unpadded PDN.
    """
    before = margin * STRIDE
    ends = [STRIDE * (side - 1) + RECEPTIVE_FIELD for side in shape]
    kept = np.zeros(ends, np.int32)
    seen = ~pixels[: ends[0] - before, : ends[1] - before]
    kept[before : before + seen.shape[0], before : before + seen.shape[1]] = seen
    # The number of kept pixels above and to the left of each corner.
    sums = np.pad(kept.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))
    tops, lefts = (STRIDE * np.arange(side) for side in shape)
    bottoms, rights = tops + RECEPTIVE_FIELD, lefts + RECEPTIVE_FIELD
    inside = (
        sums[np.ix_(bottoms, rights)]
        - sums[np.ix_(tops, rights)]
        - sums[np.ix_(bottoms, lefts)]
        + sums[np.ix_(tops, lefts)]
    )
    return inside == 0


def ignored_outputs_of_parts(pixels: Bool[Array, "b h w"]) -> Bool[Array, "b oh ow"]:
    """The outputs of an unpadded PDN of which every pixel is ignored; compiled with a step."""
    for axis in (1, 2):
        window, strides = [1, 1, 1], [1, 1, 1]
        window[axis], strides[axis] = RECEPTIVE_FIELD, STRIDE
        pixels = jax.lax.reduce_window(pixels, True, jax.lax.bitwise_and, window, strides, "valid")
    return pixels


def fill_ignored(
    images: UInt8[Array, "n h w 3"] | Float[Array, "n h w 3"], ignored: Ignored | None
) -> UInt8[Array, "n h w 3"] | Float[Array, "n h w 3"]:
    """The images, uint8 or in [0, 1], with the constant color on ignored pixels."""
    if ignored is None:
        return images
    color = jnp.asarray(FILL)
    color = color if images.dtype == jnp.uint8 else to_unit_range(color)
    return jnp.where(jnp.asarray(ignored.pixels)[..., None], color, images)
