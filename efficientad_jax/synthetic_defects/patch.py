"""A rectangle from elsewhere in the image, after CutPaste (Li et al., CVPR 2021)."""

import numpy as np
from jaxtyping import UInt8

from efficientad_jax.synthetic_defects.defect import SyntheticDefect, painted


def draw_patch(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> SyntheticDefect:
    """A rectangle that is cut out and pasted at another place.

    CutPaste takes 2 % to 15 % of the image, to train a classifier, and changes the patch's colors.
    Here it takes 0.3 % to 6 %, so that not all defects are easy to find, and the pixels as they
    are. The sides' ratio is 0.3 to 3.3, as there.
    """
    height, width = image.shape[:2]
    area = height * width * np.exp(rng.uniform(np.log(0.003), np.log(0.06)))
    ratio = np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
    rows = int(np.clip(np.sqrt(area * ratio), 2, height // 2))
    columns = int(np.clip(np.sqrt(area / ratio), 2, width // 2))
    (top, source_top), (left, source_left) = (
        rng.integers(0, side - length, 2, endpoint=True)
        for side, length in ((height, rows), (width, columns))
    )
    mask = np.zeros((height, width), bool)
    mask[top : top + rows, left : left + columns] = True
    source = image[source_top : source_top + rows, source_left : source_left + columns]
    return painted(image, mask, source.reshape(-1, 3))
