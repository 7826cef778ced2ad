"""Perlin's gradient noise (Perlin, An image synthesizer, 1985), and shapes that are cut from it."""

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage


def perlin_noise(
    shape: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator
) -> Float[np.ndarray, "h w"]:
    """Smooth random values of mean 0, between -0.71 and 0.71.

    Args:
      shape: height and width in pixels.
      cells: number of periods along each side, at most that side.
      rng: of the random directions at the cells' corners.
    """
    angles = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    down, across = np.sin(angles), np.cos(angles)
    (rows, y), (columns, x) = (_positions(shape[i], cells[i]) for i in (0, 1))

    def slope(i: int, j: int) -> Float[np.ndarray, "h w"]:
        """The plane of one corner of each cell."""
        corner = np.ix_(rows + i, columns + j)
        return down[corner] * (y - i)[:, None] + across[corner] * (x - j)

    ease_y, ease_x = _ease(y)[:, None], _ease(x)
    top = slope(0, 0) + ease_x * (slope(0, 1) - slope(0, 0))
    bottom = slope(1, 0) + ease_x * (slope(1, 1) - slope(1, 0))
    return top + ease_y * (bottom - top)


def _positions(side: int, cells: int) -> tuple[np.ndarray, Float[np.ndarray, " {side}"]]:
    """The cell of each pixel along a side, and the pixel's place in it, in [0, 1)."""
    places = (np.arange(side) + 0.5) * (cells / side)
    return places.astype(int), places % 1


def _ease(t: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Perlin's smooth step, with first and second derivatives of 0 at 0 and 1."""
    return t**3 * (t * (t * 6 - 15) + 10)


def perlin_shape(shape: tuple[int, int], rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """A connected region with a random outline, of up to a fifth of the image.

    DRAEM (Zavrtanik et al., ICCV 2021, Section 3.3) takes all regions where the noise is above a
    threshold; this is the one around its maximum, as most real defects lie in one place.
    """
    down, across = 2 ** rng.integers(1, 5, 2)
    noise = perlin_noise(shape, (int(down), int(across)), rng)
    share = rng.uniform(0.02, 0.2)
    regions, _ = ndimage.label(noise >= np.quantile(noise, 1 - share))  # pyright: ignore
    return np.asarray(regions == regions.flat[noise.argmax()])
