"""Images next to their local, global and combined maps (paper, Figure 5)."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from efficientad_jax.detection.detector import Detection
from efficientad_jax.errors import InputError
from efficientad_jax.figures.drawing import PAGE, STYLE, hide_frame


def draw_maps(
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]],
    detections: Sequence[Detection],
    high: float | None = None,
) -> Figure:
    """Draws a row per image: the image and its maps, all with the same color scale.

    The color scale starts at 0, the `q_a`-quantile of normal pixels.

    Args:
      images: RGB, of any sizes; at least one.
      detections: results of a detector, one per image. Without a global map, the local map equals
        the combined one and is not drawn.
      high: upper end of the color scale, where 0.1 is the `q_b`-quantile of normal pixels; None for
        the maximum of the combined maps.

    Raises:
      InputError: `high` is not above 0, or there are no images.
    """
    if not images:
        raise InputError("figure of maps: no images, expected at least one")
    if high is None:
        high = max(0.1, *(float(d.anomaly_map.max()) for d in detections))
    if not high > 0:
        raise InputError(f"figure of maps: highest value {high:g}, expected one above 0")
    has_global = detections[0].global_map is not None
    titles = ["image", *(["local", "global"] if has_global else []), "combined"]
    # All panels have the same width.
    width = PAGE / (len(titles) + 0.4)
    heights = [width * image.shape[0] / image.shape[1] for image in images]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, sum(heights) + 0.2), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)  # pyright: ignore
        axes = figure.subplots(len(images), len(titles), squeeze=False, height_ratios=heights)
        artist = None
        for row, image, detection in zip(axes, images, detections, strict=True):
            parts = [detection.local_map, detection.global_map] if has_global else []
            row[0].imshow(image)
            for axis, values in zip(row[1:], [*parts, detection.anomaly_map], strict=True):
                artist = axis.imshow(values, cmap="inferno", vmin=0, vmax=high)
        for axis in axes.flat:
            hide_frame(axis)
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title)
        assert artist is not None
        bar = figure.colorbar(artist, ax=axes, extend="both", fraction=0.025, pad=0.01, aspect=30)
        bar.outline.set_linewidth(0.4)  # pyright: ignore
        bar.set_label("anomaly")
    return figure
