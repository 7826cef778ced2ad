"""A foreign texture, after DRAEM (Zavrtanik et al., ICCV 2021)."""

import numpy as np
from jaxtyping import Float, UInt8

from efficientad_jax.synthetic_defects.defect import SyntheticDefect, painted, suited_colors
from efficientad_jax.synthetic_defects.perlin import perlin_noise, perlin_shape

_MOST_CELLS = 64


def draw_texture(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> SyntheticDefect:
    """A region of Perlin noise in which a texture shines through or covers the image.

    DRAEM takes textures of a data set. These are Perlin noise of several octaves between two
    random colors, so that no other images are needed. The opacity is 15 % to 80 %.
    """
    shape = (image.shape[0], image.shape[1])
    mask = perlin_shape(shape, rng)
    opacity = rng.uniform(0.15, 0.8)
    before = image[mask].astype(float)
    texture = suited_colors(image, _texture(shape, rng)[mask])
    return painted(image, mask, before + opacity * (texture - before))


def _texture(shape: tuple[int, int], rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """Random colors in 0..255."""
    cells, weight = int(2 ** rng.integers(2, 6)), 1.0
    noise = np.zeros(shape)
    while cells <= min(_MOST_CELLS, *shape):
        noise += weight * perlin_noise(shape, (cells, cells), rng)
        cells, weight = 2 * cells, weight / 2
    share = (noise - noise.min()) / np.ptp(noise)
    first, second = rng.uniform(0, 255, (2, 3))
    return first + share[..., None] * (second - first)
