"""A scratch: a thin, bent line."""

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from efficientad_jax.synthetic_defects.defect import SyntheticDefect, painted

# The largest width in pixels of the networks' input.
MOST_WIDTH = 3


def draw_scratch(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> SyntheticDefect:
    """A curve that is 1 to 3 pixels wide and brighter or darker than the pixels below it.

    It is as long as 15 % to 70 % of the shorter side. Its brightness differs by 15 to 110 gray
    levels, before clipping, and varies along the curve.
    """
    height, width = image.shape[:2]
    length = min(height, width) * rng.uniform(0.15, 0.7)
    start = rng.uniform(0.05, 0.95, 2) * (height, width)
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.sin(angle), np.cos(angle)])
    sideways = np.array([direction[1], -direction[0]])
    middle = start + length * (direction / 2 + sideways * rng.uniform(-0.25, 0.25))
    t = np.linspace(0, 1, int(4 * length))[:, None]  # a quadratic Bezier curve
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * (start + length * direction)
    rows, columns = np.rint(curve).astype(int).T
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    line = np.zeros((height, width), bool)
    line[rows[inside], columns[inside]] = True
    thickness = int(rng.integers(1, MOST_WIDTH, endpoint=True))
    mask = np.asarray(ndimage.binary_dilation(line, np.ones((thickness, thickness))), bool)
    change = rng.choice([-1, 1]) * rng.uniform(15, 110)
    variation = rng.uniform(0.7, 1.0, (int(mask.sum()), 1))
    return painted(image, mask, image[mask] + change * variation)
