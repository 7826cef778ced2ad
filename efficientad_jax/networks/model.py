"""The three networks of a detector; training and detection both use them."""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from efficientad_jax.convolution import ConvolutionMethod
from efficientad_jax.networks.autoencoder import Autoencoder
from efficientad_jax.networks.pdn import PatchDescriptionNetwork, Size, output_size


class Networks(NamedTuple):
    """The three networks, without parameters."""

    teacher: PatchDescriptionNetwork
    student: PatchDescriptionNetwork
    autoencoder: Autoencoder


def create_networks(
    size: Size,
    out_channels: int,
    input_size: tuple[int, int],
    *,
    padding: bool = False,
    dtype: DTypeLike = jnp.float32,
    convolution: ConvolutionMethod = "auto",
) -> Networks:
    """Creates the modules of a detector.

    Args:
      size: of teacher and student.
      out_channels: of the teacher; the student has twice as many.
      input_size: height and width of the images, which set the autoencoder's output size.
      padding: whether the layers of teacher and student are padded.
      dtype: of the computation; parameters are float32.
      convolution: how convolutions are computed, see `efficientad_jax.convolution`.
    """
    pdn = partial(
        PatchDescriptionNetwork, size=size, padding=padding, dtype=dtype, convolution=convolution
    )
    autoencoder = Autoencoder(
        out_channels=out_channels,
        output_size=output_size(*input_size, padding=padding),
        dtype=dtype,
        convolution=convolution,
    )
    return Networks(pdn(out_channels=out_channels), pdn(out_channels=2 * out_channels), autoencoder)
