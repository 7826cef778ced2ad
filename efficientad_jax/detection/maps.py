"""Resizes maps on the host to the size of their images."""

import numpy as np
from jaxtyping import Float32
from PIL import Image


def resize_map(
    cells: Float32[np.ndarray, "c d"],
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> Float32[np.ndarray, "h w"]:
    """Resizes one map on the host, bilinearly, with antialiasing when it shrinks.

    Args:
      cells: the map.
      size: height and width of the result.
      box: left, top, right and bottom of the part to resize, in cells; None for the whole map.
    """
    height, width = size
    resized = Image.fromarray(cells).resize((width, height), Image.Resampling.BILINEAR, box)
    return np.asarray(resized)
