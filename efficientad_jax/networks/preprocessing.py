"""Converts stored pixels to the input of the networks."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

# ImageNet statistics of RGB in [0, 1] (paper, Algorithm 1, line 4).
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def to_unit_range(images: UInt8[Array, "*batch c"]) -> Float[Array, "*batch c"]:
    """Scales uint8 pixels from 0..255 to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def normalize_images(images: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """Subtracts ImageNet's mean and divides by its standard deviation.

    Args:
      images: float32 RGB in [0, 1], channels last.

    Returns:
      float32 of the same shape; photographs get a mean of about 0 and a variance of about 1.
    """
    return (images - IMAGENET_MEAN) / IMAGENET_STD
