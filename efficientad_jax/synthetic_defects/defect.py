"""A synthetic defect, and how much it changes an image."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

# The mean over a defect's pixels of the largest change of a channel, in gray levels of 255, and the
# number of pixels, below which a defect is drawn again.
SMALLEST_CHANGE = 10.0
SMALLEST_AREA = 16

# The mean difference between the channels of an image below which it is gray.
_GRAY_SPREAD = 2.0


class SyntheticDefect(NamedTuple):
    """A good image with a defect.

    Attributes:
      image: RGB.
      mask: True on the pixels that the defect covers. All others are those of the good image.
    """

    image: UInt8[np.ndarray, "h w 3"]
    mask: Bool[np.ndarray, "h w"]


def painted(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    colors: Float[np.ndarray, "n 3"] | UInt8[np.ndarray, "n 3"],
) -> SyntheticDefect:
    """The image with other colors on the mask, rounded and clipped to 0..255.

    Args:
      image: RGB.
      mask: True on the pixels to paint.
      colors: of the mask's pixels, row by row.
    """
    result = image.copy()
    result[mask] = np.clip(np.rint(colors), 0, 255).astype(np.uint8)
    return SyntheticDefect(result, mask)


def suited_colors(
    image: UInt8[np.ndarray, "h w 3"], colors: Float[np.ndarray, "*n 3"]
) -> Float[np.ndarray, "*n 3"]:
    """The colors, as gray levels if the image is gray: a camera without colors sees none."""
    spread = np.ptp(image.astype(int), axis=2).mean()
    return colors if spread >= _GRAY_SPREAD else np.repeat(colors.mean(-1, keepdims=True), 3, -1)


def mean_change(image: UInt8[np.ndarray, "h w 3"], defect: SyntheticDefect) -> float:
    """The mean over the mask of the largest change of a channel, in gray levels; 0 if empty."""
    before, after = image[defect.mask].astype(int), defect.image[defect.mask].astype(int)
    return float(np.abs(after - before).max(1).mean()) if len(before) else 0.0


def is_large_enough(image: UInt8[np.ndarray, "h w 3"], defect: SyntheticDefect) -> bool:
    """Whether a defect changes enough pixels by enough to count as one."""
    is_visible = mean_change(image, defect) >= SMALLEST_CHANGE
    return is_visible and int(defect.mask.sum()) >= SMALLEST_AREA
