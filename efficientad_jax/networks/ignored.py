"""Pixels that the networks do not see, and the values of their outputs that count for nothing.

An ignored pixel has a constant color wherever a network sees the image. An output whose whole
33x33 patch is ignored describes nothing: it is not mined, and counted in no statistic or score.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from efficientad_jax.data.framing import FILL
from efficientad_jax.errors import InputError
from efficientad_jax.networks.pdn import MARGIN, RECEPTIVE_FIELD, STRIDE, output_size
from efficientad_jax.networks.preprocessing import to_unit_range
from efficientad_jax.networks.resize import bilinear_matrix


class Ignored(NamedTuple):
    """What is ignored of each image, or of all images where `m` is 1.

    Attributes:
      pixels: True on the ignored pixels of the networks' input.
      values: True on the values of a map, or on the outputs, that do not count.
    """

    pixels: Bool[Array | np.ndarray, "m h w"]
    values: Bool[Array | np.ndarray, "m oh ow"]

    def of(self, images: Int[Array | np.ndarray, " b"] | slice) -> "Ignored":
        """What is ignored of some of the images."""
        return self if len(self.pixels) == 1 else jax.tree.map(lambda x: x[images], self)


def ignored_places(
    pixels: Bool[np.ndarray, "h w"], *, padding: bool, upsample_first: bool = False
) -> Ignored:
    """Finds the values of a map that count for nothing.

    Args:
      pixels: True on the ignored pixels of the networks' input, the same of all images.
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
            "input it ignores every patch, expected a mask that leaves pixels to look at"
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


def fill_ignored(
    images: UInt8[Array, "n h w 3"] | Float[Array, "n h w 3"], ignored: Ignored | None
) -> UInt8[Array, "n h w 3"] | Float[Array, "n h w 3"]:
    """The images, uint8 or in [0, 1], with the constant color on ignored pixels."""
    if ignored is None:
        return images
    color = jnp.asarray(FILL)
    color = color if images.dtype == jnp.uint8 else to_unit_range(color)
    return jnp.where(jnp.asarray(ignored.pixels)[..., None], color, images)
