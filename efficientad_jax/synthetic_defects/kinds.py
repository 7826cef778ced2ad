"""The kinds of synthetic defects, and how one is drawn."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, UInt8

from efficientad_jax.synthetic_defects.color import draw_color
from efficientad_jax.synthetic_defects.defect import SyntheticDefect, is_large_enough
from efficientad_jax.synthetic_defects.doubled_part import draw_doubled_part
from efficientad_jax.synthetic_defects.patch import draw_patch
from efficientad_jax.synthetic_defects.removed_part import draw_removed_part
from efficientad_jax.synthetic_defects.scar import draw_scar
from efficientad_jax.synthetic_defects.scratch import draw_scratch
from efficientad_jax.synthetic_defects.texture import draw_texture

Draw = Callable[[UInt8[np.ndarray, "h w 3"], np.random.Generator], SyntheticDefect | None]

KINDS: dict[str, Draw] = {
    "texture": draw_texture,
    "color": draw_color,
    "patch": draw_patch,
    "scar": draw_scar,
    "scratch": draw_scratch,
    "removed_part": draw_removed_part,
    "doubled_part": draw_doubled_part,
}

# Draws until an image counts as unsuitable for a kind.
MOST_DRAWS = 20
# The smallest height and width in pixels of an image that defects are drawn on.
SMALLEST_SIDE = 64


def draw_defect(
    image: UInt8[np.ndarray, "h w 3"],
    kind: str,
    rng: np.random.Generator,
    *,
    ignored: Bool[np.ndarray, "h w"] | None = None,
) -> SyntheticDefect | None:
    """Draws a defect, again and again until it is large enough; see `is_large_enough`.

    Args:
      image: a good image, RGB.
      kind: a name of `KINDS`.
      rng: its state determines the defect.
      ignored: True on pixels that no defect may change.

    Returns:
      The defect. None if a side is below `SMALLEST_SIDE`, if the image has no parts to remove or to
      double, or if `MOST_DRAWS` draws were too small: a patch of an image of one color changes
      nothing.
    """
    if min(image.shape[:2]) < SMALLEST_SIDE:
        return None
    for _ in range(MOST_DRAWS):
        defect = KINDS[kind](image, rng)
        if defect is None:
            return None
        if ignored is not None:
            mask = defect.mask & ~ignored
            defect = SyntheticDefect(np.where(mask[..., None], defect.image, image), mask)
        if is_large_enough(image, defect):
            return defect
    return None
