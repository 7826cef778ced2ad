"""Parts of an image: connected pixels that stand out from their surroundings."""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

# Of the image's pixels.
_SMALLEST, _LARGEST = 0.0005, 0.05


def standing_out(image: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """The pixels that differ from their surroundings by more than twice the mean difference.

    Places that are less than 3 pixels wide do not count: most are noise.
    """
    pixels = image.astype(np.float32)
    wide = min(image.shape[:2]) / 12
    near, far = (ndimage.gaussian_filter(pixels, (sigma, sigma, 0)) for sigma in (1.0, wide))
    difference = np.abs(near - far).max(2)
    return np.asarray(ndimage.binary_opening(difference > 2 * difference.mean(), np.ones((3, 3))))


def random_part(
    stands_out: Bool[np.ndarray, "h w"], rng: np.random.Generator
) -> Bool[np.ndarray, "h w"] | None:
    """One of the parts of 0.05 % to 5 % of the image that do not touch its border, or None.

    Its holes are filled.
    """
    regions, count = ndimage.label(stands_out)  # pyright: ignore
    border = {*regions[0], *regions[-1], *regions[:, 0], *regions[:, -1]}
    areas = np.bincount(regions.ravel(), minlength=count + 1) / regions.size
    chosen = [
        number
        for number in range(1, count + 1)
        if number not in border and _SMALLEST <= areas[number] <= _LARGEST
    ]
    return np.asarray(ndimage.binary_fill_holes(regions == rng.choice(chosen))) if chosen else None


def surroundings_over(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "n 3"]:
    """The colors of the mask's pixels if its surroundings continued: smooth, with their grain."""
    rows, columns = ndimage.distance_transform_edt(  # pyright: ignore
        mask, return_distances=False, return_indices=True
    )
    nearest = image[rows, columns].astype(np.float32)
    sigma = max(1.0, np.sqrt(mask.sum()) / 4)
    smooth = ndimage.gaussian_filter(nearest, (sigma, sigma, 0))[mask]
    ring = ndimage.binary_dilation(mask, iterations=4) & ~mask
    grain = (nearest - ndimage.gaussian_filter(nearest, (1.5, 1.5, 0)))[ring]
    return smooth + grain[rng.integers(0, len(grain), len(smooth))]
