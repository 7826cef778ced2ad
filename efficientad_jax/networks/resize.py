"""Bilinear resizing as two fixed matrices.

A product with a constant matrix can be differentiated, exported and batched like any other layer,
and its weights can be inspected. `jax.image.resize` gives the same numbers.
"""

from functools import cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@cache
def bilinear_matrix(source: int, target: int) -> Float[np.ndarray, "{target} {source}"]:
    """Computes the weights `[target, source]` of 1-D bilinear resizing.

    Half-pixel centers, no antialiasing, edges repeated: PyTorch's `align_corners=False`.
    """
    positions = (np.arange(target) + 0.5) * source / target - 0.5
    positions = np.clip(positions, 0, source - 1)
    lower = np.minimum(np.floor(positions).astype(int), source - 1)
    upper = np.minimum(lower + 1, source - 1)
    fraction = positions - lower
    matrix = np.zeros((target, source), np.float32)
    np.add.at(matrix, (np.arange(target), lower), 1 - fraction)
    np.add.at(matrix, (np.arange(target), upper), fraction)
    return matrix


def resize_bilinear(x: Float[Array, "n h w c"], size: tuple[int, int]) -> Float[Array, "n oh ow c"]:
    """Resizes images or feature maps to `size` (height, width).

    Half-pixel centers, no antialiasing (the paper: `align_corners=False`). Returns `x` itself if it
    has that size already.
    """
    if x.shape[1:3] == size:
        return x
    rows = jnp.asarray(bilinear_matrix(x.shape[1], size[0]), x.dtype)
    columns = jnp.asarray(bilinear_matrix(x.shape[2], size[1]), x.dtype)
    x = jnp.einsum("ph,nhwc->npwc", rows, x)
    return jnp.einsum("qw,npwc->npqc", columns, x)
