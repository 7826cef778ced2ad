"""The description of a detector's networks in a few fields."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from efficientad_jax.config import LARGEST_SIDE, SMALLEST_SIDE
from efficientad_jax.detection.inference import DetectorParams
from efficientad_jax.networks.model import Networks, create_networks
from efficientad_jax.networks.pdn import SIZES
from efficientad_jax.networks.teacher import MOST_CHANNELS


class DetectorSpec(NamedTuple):
    """The fields from which the networks are built.

    Attributes:
      size: of the PDNs, 'small' or 'medium'.
      out_channels: of the teacher.
      input_size: height and width that images are resized to.
      padding: whether the PDNs are padded.
      dtype: of the computation, 'float32' or 'bfloat16'.
      autoencoder: whether there is one.
    """

    size: str
    out_channels: int
    input_size: tuple[int, int]
    padding: bool
    dtype: str
    autoencoder: bool


def networks_of(spec: DetectorSpec) -> Networks:
    """The modules that a spec describes."""
    return create_networks(
        spec.size,  # pyright: ignore[reportArgumentType]
        spec.out_channels,
        spec.input_size,
        padding=spec.padding,
        dtype=spec.dtype,
    )


@functools.cache
def abstract_params(spec: DetectorSpec) -> DetectorParams:
    """Shapes and dtypes of a detector's parameters."""
    networks = networks_of(spec)
    image = jax.ShapeDtypeStruct((1, *spec.input_size, 3), np.float32)

    def shapes(network: nn.Module) -> dict[str, Any]:
        return jax.eval_shape(network.init, jax.random.key(0), image)

    return DetectorParams(
        shapes(networks.teacher),
        shapes(networks.student),
        shapes(networks.autoencoder) if spec.autoencoder else None,
    )


def checked_spec(stored: dict[str, Any]) -> DetectorSpec:
    """A spec from a file, checked so that its networks take a bounded amount of memory.

    Raises:
      TypeError: a field is missing, or one too many.
      ValueError: a field is out of its range.
    """
    spec = DetectorSpec(**stored)
    spec = spec._replace(input_size=tuple(spec.input_size))
    sides = range(SMALLEST_SIDE, LARGEST_SIDE + 1, 32)
    ints = (spec.out_channels, *spec.input_size)
    if not (
        spec.size in SIZES
        and all(type(number) is int for number in ints)
        and 1 <= spec.out_channels <= MOST_CHANNELS
        and len(spec.input_size) == 2
        and all(side in sides for side in spec.input_size)
        and type(spec.padding) is bool
        and type(spec.autoencoder) is bool
        and spec.dtype in ("float32", "bfloat16")
    ):
        raise ValueError(f"no networks can be made of the spec {str(stored)[:200]}")
    return spec
