"""The features that the hard feature loss selects, at one or several steps (paper, Figure 4)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Int, PyTree, UInt8
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from efficientad_jax.errors import InputError
from efficientad_jax.figures.drawing import PAGE, STYLE, hide_frame
from efficientad_jax.networks.layers import float32_features
from efficientad_jax.networks.model import Networks
from efficientad_jax.networks.pdn import RECEPTIVE_FIELD, STRIDE
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.training.losses import hard_feature_mask


def count_hard_features(
    networks: Networks,
    teacher_params: PyTree,
    student_params: PyTree,
    *,
    images: UInt8[np.ndarray, "n h w 3"],
    p_hard: float = 0.999,
) -> Int[np.ndarray, "n oh ow"]:
    """Counts the features of each patch that the loss selects.

    The quantile is computed per image, as in training with a batch size of 1.

    Args:
      networks: their modules.
      teacher_params: of the normalized teacher.
      student_params: of the student.
      images: RGB at the networks' input size.
      p_hard: mining factor; 0 selects all features.

    Returns:
      Counts from 0 to the teacher's `out_channels`.
    """
    half = networks.teacher.out_channels

    @jax.jit
    def count(
        teacher_params: PyTree, student_params: PyTree, image: UInt8[Array, "h w 3"]
    ) -> Int[Array, "oh ow"]:
        x = normalize_images(to_unit_range(image))[None]
        teacher = float32_features(networks.teacher, teacher_params, x)
        student = float32_features(networks.student, student_params, x, slice(0, half))
        return hard_feature_mask(jnp.square(teacher - student)[0], p_hard).sum(-1)

    return np.stack([count(teacher_params, student_params, image) for image in images])


def draw_hard_features(
    images: UInt8[np.ndarray, "n h w 3"],
    counts: Mapping[str, Int[np.ndarray, "n oh ow"]],
    channels: int,
    *,
    padding: bool = False,
) -> Figure:
    """Draws a row per image: the image, and a mask per state of the student.

    A patch's brightness is the number of its selected features. It is drawn at the position of its
    center in the image. Positions on which no patch of an unpadded network is centered are hatched.

    Args:
      images: RGB at the network's input size; at least one.
      counts: results of `count_hard_features`, by the label of the student's state.
      channels: number of features per patch.
      padding: whether the network is padded.

    Raises:
      InputError: there are no images.
    """
    if not len(images):
        raise InputError("figure of hard features: no images, expected at least one")
    height, width = images.shape[1:3]
    highest = max(int(state_counts.max()) for state_counts in counts.values())
    side = PAGE / (len(counts) + 1.25)
    with matplotlib.rc_context({**STYLE, "hatch.linewidth": 0.3}):
        figure = Figure(
            figsize=(PAGE, side * height / width * len(images) + 0.2), layout="constrained"
        )
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)  # pyright: ignore
        axes = figure.subplots(len(images), 1 + len(counts), squeeze=False)
        artist = None
        for i, row in enumerate(axes):
            row[0].imshow(images[i], extent=(0, width, height, 0))
            for axis, state_counts in zip(row[1:], counts.values(), strict=True):
                rows, columns = state_counts.shape[1:]
                # An output covers the 4x4 pixels at the center of its receptive field.
                first = 0 if padding else RECEPTIVE_FIELD / 2 - STRIDE / 2
                extent = (first, first + STRIDE * columns, first + STRIDE * rows, first)
                # Most patches have few selected features: the square root makes them visible.
                norm = PowerNorm(0.5, 0, max(1, highest))
                artist = axis.imshow(state_counts[i], cmap="gray", norm=norm, extent=extent)
                axis.set(xlim=(0, width), ylim=(height, 0))
                axis.patch.set(hatch="//////", edgecolor="0.7", facecolor="white")
        for axis in axes.flat:
            hide_frame(axis)
        for axis, title in zip(axes[0], ("image", *counts), strict=True):
            axis.set_title(title)
        assert artist is not None
        bar = figure.colorbar(artist, ax=axes, fraction=0.025, pad=0.01, aspect=30)
        bar.locator = MaxNLocator("auto", integer=True)
        bar.outline.set_linewidth(0.4)  # pyright: ignore
        bar.set_label(f"selected features, of {channels}")
    return figure
