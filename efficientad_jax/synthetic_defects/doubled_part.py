"""A part that is there twice, for logical anomalies."""

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from efficientad_jax.synthetic_defects.defect import SyntheticDefect, painted
from efficientad_jax.synthetic_defects.parts import random_part, standing_out

# Places that are tried, and how much of another part a copy may cover.
_PLACES, _MOST_COVERED = 20, 0.2


def draw_doubled_part(
    image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
) -> SyntheticDefect | None:
    """A copy of one of the parts, with a margin of a pixel, at a place where there was none.

    None if the image has no parts, or no such place was found.
    """
    taken = standing_out(image)
    height, width = taken.shape
    for _ in range(_PLACES):
        part = random_part(taken, rng)
        if part is None:
            return None
        rows, columns = np.nonzero(ndimage.binary_dilation(part))
        down = rng.integers(-rows.min(), height - rows.max())
        across = rng.integers(-columns.min(), width - columns.max())
        mask = np.zeros((height, width), bool)
        mask[rows + down, columns + across] = True
        if not (mask & part).any() and taken[mask].mean() <= _MOST_COVERED:
            return painted(image, mask, image[rows, columns])
    return None
