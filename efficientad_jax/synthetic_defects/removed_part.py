"""A part that is missing, for logical anomalies."""

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from efficientad_jax.synthetic_defects.defect import SyntheticDefect, painted
from efficientad_jax.synthetic_defects.parts import random_part, standing_out, surroundings_over


def draw_removed_part(
    image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
) -> SyntheticDefect | None:
    """One of the parts, with a margin of 3 pixels, under its surroundings' color and grain.

    None if the image has no parts.
    """
    part = random_part(standing_out(image), rng)
    if part is None:
        return None
    mask = np.asarray(ndimage.binary_dilation(part, iterations=3))
    return painted(image, mask, surroundings_over(image, mask, rng))
