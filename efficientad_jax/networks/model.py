"""The three networks of a detector, as training and detection both take them."""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from efficientad_jax.convolution import Method
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
    padding: bool = False,
    dtype: DTypeLike = jnp.float32,
    convolution: Method = "auto",
) -> Networks:
    """Teacher, student with twice the teacher's channels, and an autoencoder that fits them."""
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
