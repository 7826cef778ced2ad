"""A region of another color, such as a stain."""

import numpy as np
from jaxtyping import UInt8

from efficientad_jax.synthetic_defects.defect import SyntheticDefect, painted, suited_colors
from efficientad_jax.synthetic_defects.perlin import perlin_shape


def draw_color(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> SyntheticDefect:
    """A region of Perlin noise whose color is shifted; its texture stays.

    The largest shift of a channel is 12 to 90 gray levels, before clipping. Half of the regions
    become brighter or darker, those of gray images always.
    """
    mask = perlin_shape((image.shape[0], image.shape[1]), rng)
    direction = rng.uniform(-1, 1, 3)
    if rng.integers(2):  # brighter or darker
        direction[:] = direction[0]
    direction = suited_colors(image, direction)
    shift = direction / np.abs(direction).max() * rng.uniform(12, 90)
    return painted(image, mask, image[mask] + shift)
