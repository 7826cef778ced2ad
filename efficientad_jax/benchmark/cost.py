"""Counts parameters and floating-point operations of the networks (paper, Table 11)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from efficientad_jax.networks.model import create_networks
from efficientad_jax.networks.pdn import Size


class Cost(NamedTuple):
    """Cost of teacher, student and autoencoder together.

    Attributes:
      parameters: number of parameters.
      flop: floating-point operations per image, as XLA counts them for direct convolutions.
    """

    parameters: int
    flop: float


def cost_of(size: Size, image_size: tuple[int, int]) -> Cost:
    """Counts parameters and operations for images of a height and width in pixels."""
    image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    parameters, flop = 0, 0.0
    for network in create_networks(size, 384, image_size, convolution="direct"):
        params = jax.eval_shape(network.init, jax.random.key(0), image)
        parameters += sum(leaf.size for leaf in jax.tree.leaves(params))
        analysis = jax.jit(network.apply).lower(params, image).compile().cost_analysis()
        assert analysis is not None
        flop += analysis["flops"]
    return Cost(parameters, flop)
