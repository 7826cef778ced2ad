"""What the hard feature loss picks of images, at one or several steps (paper, Figure 4)."""

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
    images: UInt8[np.ndarray, "n h w 3"],
    p_hard: float = 0.999,
) -> Int[np.ndarray, "n oh ow"]:
    """How many features of each patch the loss would send a gradient to.

    The quantile is that of one image, as in training with batches of 1.

    Args:
      networks: their modules.
      teacher_params: of the normalised teacher.
      student_params: of the student.
      images: RGB at the networks' input size.
      p_hard: mining factor; 0 picks all features.

    Returns:
      From 0 to the teacher's `out_channels`.
    """
    half = networks.teacher.out_channels

    @jax.jit
    def of_one(
        teacher_params: PyTree, student_params: PyTree, image: UInt8[Array, "h w 3"]
    ) -> Int[Array, "oh ow"]:
        x = normalize_images(to_unit_range(image))[None]
        teacher = float32_features(networks.teacher, teacher_params, x)
        student = float32_features(networks.student, student_params, x, slice(0, half))
        return hard_feature_mask(jnp.square(teacher - student)[0], p_hard).sum(-1)

    return np.stack([of_one(teacher_params, student_params, image) for image in images])


def draw_hard_features(
    images: UInt8[np.ndarray, "n h w 3"],
    counts: Mapping[str, Int[np.ndarray, "n oh ow"]],
    channels: int,
    padding: bool = False,
) -> Figure:
    """A row an image: the image, and a mask for each state of the student.

    A patch is as bright as many of its features were picked. Each lies over its centre in the
    image; what no patch of an unpadded network is centred on is hatched.

    Args:
      images: RGB at the network's input size; at least one.
      counts: what `count_hard_features` gave, by what the reader knows the state by.
      channels: how many features a patch has.
      padding: whether the network is padded.

    Raises:
      InputError: there are no images.
    """
    if not len(images):
        raise InputError("figure of hard features: no images, expected at least one")
    height, width = images.shape[1:3]
    highest = max(int(of_state.max()) for of_state in counts.values())
    side = PAGE / (len(counts) + 1.25)
    with matplotlib.rc_context({**STYLE, "hatch.linewidth": 0.3}):
        figure = Figure(
            figsize=(PAGE, side * height / width * len(images) + 0.2), layout="constrained"
        )
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)  # pyright: ignore
        axes = figure.subplots(len(images), 1 + len(counts), squeeze=False)
        shown = None
        for i, row in enumerate(axes):
            row[0].imshow(images[i], extent=(0, width, height, 0))
            for axis, of_state in zip(row[1:], counts.values(), strict=True):
                rows, columns = of_state.shape[1:]
                # An unpadded output is centred on the patch that it sees.
                first = 0 if padding else RECEPTIVE_FIELD / 2 - STRIDE / 2
                extent = (first, first + STRIDE * columns, first + STRIDE * rows, first)
                # Few are picked of most patches: dark ones are told from black.
                norm = PowerNorm(0.5, 0, max(1, highest))
                shown = axis.imshow(of_state[i], cmap="gray", norm=norm, extent=extent)
                axis.set(xlim=(0, width), ylim=(height, 0))
                axis.patch.set(hatch="//////", edgecolor="0.7", facecolor="white")
        for axis in axes.flat:
            hide_frame(axis)
        for axis, title in zip(axes[0], ("image", *counts), strict=True):
            axis.set_title(title)
        assert shown is not None
        bar = figure.colorbar(shown, ax=axes, fraction=0.025, pad=0.01, aspect=30)
        bar.locator = MaxNLocator("auto", integer=True)
        bar.outline.set_linewidth(0.4)  # pyright: ignore
        bar.set_label(f"features picked, of {channels}")
    return figure
