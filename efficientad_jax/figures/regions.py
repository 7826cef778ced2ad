"""Images with the boxes of their regions, the maps over them and the true defects."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from efficientad_jax.detection.detector import Detection
from efficientad_jax.detection.heatmap import HIGH, LINE_COLOR, LOW, overlay
from efficientad_jax.errors import InputError
from efficientad_jax.figures.drawing import PAGE, STYLE, hide_frame

_COLUMNS = 5
_BOX_COLOR = tuple(value / 255 for value in LINE_COLOR)
_DEFECT_COLOR = "white"


class RegionsOfImage(NamedTuple):
    """An image to draw.

    Attributes:
      title: is written above it.
      image: RGB, of any size.
      detection: of the image, at its own size.
      mask: True on the true defects; None if there is none or it is not known.
    """

    title: str
    image: UInt8[np.ndarray, "h w 3"]
    detection: Detection
    mask: Bool[np.ndarray, "h w"] | None


def draw_regions(shown: Sequence[RegionsOfImage]) -> Figure:
    """Draws images in rows of five: heat map, boxes of regions, and outlines of true defects.

    Boxes are cyan. Outlines of true defects are white, as in the masks of the dataset.

    Raises:
      InputError: there are no images, or the detector has no pixel threshold.
    """
    if not shown:
        raise InputError("figure of regions: no images, expected at least one")
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    width = PAGE / columns
    tallest = max(each.image.shape[0] / each.image.shape[1] for each in shown)
    with matplotlib.rc_context(STYLE):
        size = (PAGE, rows * (width * min(tallest, 1.5) + 0.2))
        figure = Figure(figsize=size, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)  # pyright: ignore
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            hide_frame(axis)
        for axis, each in zip(axes.flat, shown, strict=False):
            detection = each.detection
            axis.imshow(overlay(each.image, detection.anomaly_map, low=LOW, high=HIGH))
            axis.set_title(each.title)
            if each.mask is not None and each.mask.any():
                axis.contour(each.mask, [0.5], colors=_DEFECT_COLOR, linewidths=0.6)
            for region in detection.regions:
                x, y, box_width, box_height = region.box
                # The center of the first pixel is (0, 0) on these axes.
                corner = (x - 0.5, y - 0.5)
                axis.add_patch(
                    Rectangle(corner, box_width, box_height, fill=False, ec=_BOX_COLOR, lw=0.8)
                )
    return figure
