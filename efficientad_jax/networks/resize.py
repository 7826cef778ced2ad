"""Bilinear resizing as two fixed matrices.

A product with a constant matrix can be differentiated, exported and batched like any other layer,
and its weights can be inspected. `jax.image.resize` gives the same numbers.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from efficientad_jax.convolution import ConvolutionMethod, chosen_method


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


def resize_bilinear(
    x: Float[Array, "n h w c"], size: tuple[int, int], *, method: ConvolutionMethod = "direct"
) -> Float[Array, "n oh ow c"]:
    """Resizes images or feature maps to `size` (height, width).

    Half-pixel centers, no antialiasing (the paper: `align_corners=False`). Returns `x` itself if it
    has that size already.

    Args:
      x: images or feature maps.
      size: height and width of the result.
      method: of the network's convolutions. With 'gpu' the neighbors of every output are gathered,
        which is one kernel in place of two products and transpositions.
    """
    if x.shape[1:3] == size:
        return x
    if chosen_method(method) == "gpu":
        return _resize_by_gathering(x, size)
    rows = jnp.asarray(bilinear_matrix(x.shape[1], size[0]), x.dtype)
    columns = jnp.asarray(bilinear_matrix(x.shape[2], size[1]), x.dtype)
    x = jnp.einsum("ph,nhwc->npwc", rows, x)
    return jnp.einsum("qw,npwc->npqc", columns, x)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _resize_by_gathering(x: Array, size: tuple[int, int]) -> Array:
    matrices = [bilinear_matrix(x.shape[axis], size[axis - 1]) for axis in (1, 2)]
    return _apply_sparse(matrices, x)


def _resize_forward(x: Array, size: tuple[int, int]) -> tuple[Array, tuple[int, int]]:
    return _resize_by_gathering(x, size), (x.shape[1], x.shape[2])


def _resize_backward(
    size: tuple[int, int], source: tuple[int, int], gradient: Array
) -> tuple[Array]:
    """Gathers as well: the transposition of a gather would add into memory, in random order."""
    matrices = [bilinear_matrix(a, b).T for a, b in zip(source, size, strict=True)]
    return (_apply_sparse(matrices, gradient),)


_resize_by_gathering.defvjp(_resize_forward, _resize_backward)


def _apply_sparse(matrices: list[Float[np.ndarray, "_t _s"]], x: Array) -> Array:
    """Multiplies height and width by matrices of which few elements in a row are not zero."""
    y = x.astype(jnp.float32)
    for axis, matrix in enumerate(matrices, 1):
        count = max(int((matrix != 0).sum(1).max()), 1)
        columns = np.argsort(matrix == 0, axis=1, kind="stable")[:, :count].astype(np.int32)
        weights = np.take_along_axis(matrix, columns, axis=1)
        shape = [-1 if i == axis else 1 for i in range(4)]
        y = sum(
            jnp.asarray(weights[:, j].reshape(shape))
            * jnp.take(y, columns[:, j], axis=axis, mode="clip")
            for j in range(count)
        )
    return jnp.asarray(y, x.dtype)
