"""The receptive field of a feature (paper, Figure 3): its gradient, and mean feature maps."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float, Float32, PyTree, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from efficientad_jax.figures.drawing import PAGE, STYLE, hide_frame
from efficientad_jax.networks.layers import float32_features
from efficientad_jax.networks.pdn import (
    RECEPTIVE_FIELD,
    STRIDE,
    PatchDescriptionNetwork,
    output_size,
)
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range


def receptive_window(row: int, column: int) -> tuple[slice, slice]:
    """Rows and columns of the image that an output of an unpadded PDN depends on."""
    top, left = STRIDE * row, STRIDE * column
    return slice(top, top + RECEPTIVE_FIELD), slice(left, left + RECEPTIVE_FIELD)


def absolute_gradient(
    network: PatchDescriptionNetwork,
    params: PyTree,
    images: UInt8[np.ndarray, "n h w 3"],
    *,
    position: tuple[int, int] | None = None,
    channels: Sequence[int] = (0,),
) -> Float32[np.ndarray, "h w"]:
    """Computes the absolute gradient of the features at one position with respect to the image.

    Args:
      network: its module. Convolutions are computed directly, whatever its `convolution`: other
        methods leave rounding noise where the gradient is 0.
      params: its parameters.
      images: RGB.
      position: row and column of the output; None for its center.
      channels: of the output.

    Returns:
      The mean over channels, color channels and images.
    """
    network = network.clone(convolution="direct")
    if position is None:
        rows, columns = output_size(images.shape[1], images.shape[2], network.padding)
        position = rows // 2, columns // 2

    def feature(x: Float[Array, "h w 3"], channel: Array) -> Float[Array, ""]:
        return float32_features(network, params, x[None])[0, *position, channel]

    @jax.jit
    def compute(image: UInt8[Array, "h w 3"]) -> Float[Array, "h w"]:
        x = normalize_images(to_unit_range(image))
        gradients = jax.lax.map(partial(jax.grad(feature), x), jnp.asarray(channels))
        return jnp.abs(gradients).mean((0, -1))

    return np.stack([compute(image) for image in images]).mean(0)


def mean_feature_map(
    network: PatchDescriptionNetwork,
    params: PyTree,
    images: UInt8[np.ndarray, "n h w 3"],
    *,
    channel: int = 0,
) -> Float32[np.ndarray, "oh ow"]:
    """Computes the mean of an output channel over images; artifacts of the network show in it."""

    @jax.jit
    def compute(image: UInt8[Array, "h w 3"]) -> Float[Array, "oh ow"]:
        x = normalize_images(to_unit_range(image))
        channels = slice(channel, channel + 1)
        return float32_features(network, params, x[None], channels)[0, ..., 0]

    return np.stack([compute(image) for image in images]).mean(0)


def draw_receptive_field(
    gradient: Float32[np.ndarray, "h w"],
    window: tuple[slice, slice],
    images: UInt8[np.ndarray, "n ih iw 3"],
    *,
    feature_map: Float32[np.ndarray, "oh ow"],
) -> Figure:
    """Draws three panels: gradient with receptive field, mean image, mean feature map.

    Args:
      gradient: result of `absolute_gradient`.
      window: rows and columns of the receptive field.
      images: those over which the mean feature map was computed.
      feature_map: result of `mean_feature_map`.
    """
    rows, columns = window
    size = columns.stop - columns.start, rows.stop - rows.start
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 2.15), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        artist = left.imshow(gradient, cmap="magma")
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
        figure.colorbar(artist, ax=left, fraction=0.046, pad=0.03)
        middle.imshow(images.mean(0) / 255)
        middle.set_title(f"mean of {len(images)} images")
        artist = right.imshow(feature_map, cmap="viridis")
        right.set_title("mean feature map")
        figure.colorbar(artist, ax=right, fraction=0.046, pad=0.03)
        for axis in (left, middle, right):
            hide_frame(axis)
    return figure
