"""A thin, rotated strip from elsewhere in the image, after CutPaste-Scar (Li et al., CVPR 2021)."""

import numpy as np
from jaxtyping import UInt8

from efficientad_jax.synthetic_defects.defect import SyntheticDefect, painted


def draw_scar(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> SyntheticDefect:
    """A strip of 2 to 16 by 10 to 25 pixels, turned by up to 45 degrees, as in CutPaste.

    Its pixels are those of the nearest ones of the strip before it was turned.
    """
    height, width = image.shape[:2]
    half = np.array([rng.integers(10, 25, endpoint=True), rng.integers(2, 16, endpoint=True)]) / 2
    angle = np.deg2rad(rng.uniform(-45, 45))
    reach = int(np.ceil(np.hypot(*half)))
    center, source = (
        np.array([rng.integers(reach, side - reach) for side in (height, width)]) for _ in range(2)
    )
    y, x = np.mgrid[:height, :width] - center[:, None, None]
    along = y * np.cos(angle) - x * np.sin(angle)
    across = y * np.sin(angle) + x * np.cos(angle)
    mask = (np.abs(along) <= half[0]) & (np.abs(across) <= half[1])
    rows = np.rint(source[0] + along[mask]).astype(int)
    columns = np.rint(source[1] + across[mask]).astype(int)
    return painted(image, mask, image[rows, columns])
