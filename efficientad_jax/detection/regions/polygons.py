"""The boundary of a region as a polygon along the edges of its pixels."""

import numpy as np
from jaxtyping import Bool

Polygon = tuple[tuple[int, int], ...]

# Steps along the edges of pixels, each a turn to the right from the one before: right, down, left
# and up, as x and y.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
# From a corner of pixels, the pixels to the right and to the left of each step, as x and y.
_RIGHT = ((0, 0), (-1, 0), (-1, -1), (0, -1))
_LEFT = ((0, -1), (0, 0), (-1, 0), (-1, -1))


def outer_boundary(mask: Bool[np.ndarray, "h w"], offset: tuple[int, int] = (0, 0)) -> Polygon:
    """Traces the outer boundary of connected pixels, clockwise; holes are not traced.

    It follows the edges with a pixel of the mask to their right. Where two pixels touch only at a
    corner it turns left, to the other pixel, so that one polygon surrounds all of them.

    Args:
      mask: the pixels, which touch at sides or corners; the first row has one of them.
      offset: is added to all x and y.

    Returns:
      x and y of the corners at which the boundary turns, without the first one again at the end.
    """
    padded = np.pad(mask, 1)
    start = (int(np.argmax(mask[0])) + 1, 1)  # the upper left corner of the first pixel
    corners: list[tuple[int, int]] = [start]
    (x, y), step = start, 0
    while True:
        x, y = x + _STEPS[step][0], y + _STEPS[step][1]
        following = _next_step(padded, x, y, step=step)
        if (x, y) == start and following == 0:
            break
        if following != step:
            corners.append((x, y))
            step = following
    return tuple((x - 1 + offset[0], y - 1 + offset[1]) for x, y in corners)


def _next_step(padded: Bool[np.ndarray, "h w"], x: int, y: int, *, step: int) -> int:
    """The step from a corner of pixels: to the left if that is an edge, or ahead, or right."""
    for turn in (-1, 0, 1):
        ahead = (step + turn) % 4
        (right_x, right_y), (left_x, left_y) = _RIGHT[ahead], _LEFT[ahead]
        if padded[y + right_y, x + right_x] and not padded[y + left_y, x + left_x]:
            return ahead
    raise AssertionError("a boundary ended")
