"""Patch features of a backbone, as defined by PatchCore and distilled by Algorithm 3.

For each map, 3x3 patches (stride 1, padding 1) are flattened channel by channel and adaptively
average-pooled to 1024 numbers. Deeper maps are resized to the size of the first map. The results of
all maps are concatenated and adaptively average-pooled to 384 numbers.

All of this is linear: pooling mixes channels, resizing mixes positions. The poolings are therefore
multiplied into one 3x3 kernel per map, and a deeper map is convolved at its own size and resized
afterwards. This avoids 2048 numbers at every position.
"""

from collections.abc import Sequence
from functools import cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from efficientad_jax.convolution import ConvolutionMethod, convolve
from efficientad_jax.networks.resize import resize_bilinear

_PATCH = 3


@cache
def adaptive_pool_matrix(source: int, target: int) -> Float[np.ndarray, "{target} {source}"]:
    """Adaptive average pooling in one dimension as a matrix.

    Output `i` is the mean of the inputs from `floor(i source / target)` up to
    `ceil((i + 1) source / target)`, PyTorch's `adaptive_avg_pool1d`.
    """
    matrix = np.zeros((target, source))
    for i in range(target):
        start, end = i * source // target, -(-(i + 1) * source // target)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


def _patch_kernels(
    map_channels: tuple[int, ...], channels: int, patch_channels: int
) -> list[Float[np.ndarray, "3 3 c {channels}"]]:
    last = adaptive_pool_matrix(len(map_channels) * patch_channels, channels)
    kernels = []
    for i, count in enumerate(map_channels):
        first = adaptive_pool_matrix(count * _PATCH**2, patch_channels)
        product = last[:, i * patch_channels : (i + 1) * patch_channels] @ first
        # Channel-major: entry c * 9 + 3 * row + column of a flattened patch.
        kernel = product.reshape(channels, count, _PATCH, _PATCH).transpose(2, 3, 1, 0)
        kernels.append(kernel.astype(np.float32))
    return kernels


def patch_features(
    maps: Sequence[Float[Array, "n _h _w _c"]],
    channels: int = 384,
    patch_channels: int = 1024,
    *,
    convolution: ConvolutionMethod = "auto",
) -> Float[Array, "n h0 w0 {channels}"]:
    """Patch features at the resolution of the first map.

    Args:
      maps: feature maps of the same images, from shallow to deep.
      channels: number of features of a patch.
      patch_channels: number of features of a patch and map, before the last pooling.
      convolution: how convolutions are computed, see `efficientad_jax.convolution`.
    """
    kernels = _patch_kernels(tuple(m.shape[-1] for m in maps), channels, patch_channels)
    size = (maps[0].shape[1], maps[0].shape[2])
    features = [
        resize_bilinear(convolve(m, jnp.asarray(kernel), padding=1, method=convolution), size)
        for m, kernel in zip(maps, kernels, strict=True)
    ]
    return jnp.stack(features).sum(0)
