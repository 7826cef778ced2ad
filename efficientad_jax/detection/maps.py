"""Maps on the host, resized to their images."""

import numpy as np
from jaxtyping import Float32
from PIL import Image


def resize_map(
    cells: Float32[np.ndarray, "c d"],
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> Float32[np.ndarray, "h w"]:
    """Resizes one map on the host, bilinearly; where it shrinks with antialiasing.

    Args:
      cells: the map.
      size: height and width that it gets.
      box: left, top, right and bottom of the part to take, None for all of it.
    """
    height, width = size
    resized = Image.fromarray(cells).resize((width, height), Image.Resampling.BILINEAR, box)
    return np.asarray(resized)
