"""What a feature sees: gradient, mean image, mean feature map (paper, Figure 3)."""

import matplotlib
import numpy as np
from jaxtyping import Float32, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from efficientad_jax.figures.drawing import PAGE, STYLE, hide_frame


def draw_receptive_field(
    gradient: Float32[np.ndarray, "h w"],
    window: tuple[slice, slice],
    images: UInt8[np.ndarray, "n ih iw 3"],
    feature_map: Float32[np.ndarray, "oh ow"],
) -> Figure:
    """Three panels: the gradient with its window, the mean of the images, the mean feature map.

    Args:
      gradient: what `absolute_gradient` gave.
      window: what the feature can see, rows and columns.
      images: those that the feature map is the mean over.
      feature_map: what `mean_feature_map` gave.
    """
    rows, columns = window
    size = columns.stop - columns.start, rows.stop - rows.start
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 2.15), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        shown = left.imshow(gradient, cmap="magma")
        corner = columns.start - 0.5, rows.start - 0.5
        left.add_patch(Rectangle(corner, *size, fill=False, edgecolor="white", linewidth=0.6))
        left.annotate(
            f"{size[0]} x {size[1]}",
            (columns.stop, rows.start - 2),
            color="white",
            fontsize=6,
            ha="right",
            va="bottom",
        )
        left.set_title("absolute gradient")
        figure.colorbar(shown, ax=left, fraction=0.046, pad=0.03)
        middle.imshow(images.mean(0) / 255)
        middle.set_title(f"mean of {len(images)} images")
        shown = right.imshow(feature_map, cmap="viridis")
        right.set_title("mean feature map")
        figure.colorbar(shown, ax=right, fraction=0.046, pad=0.03)
        for axis in (left, middle, right):
            hide_frame(axis)
    return figure
