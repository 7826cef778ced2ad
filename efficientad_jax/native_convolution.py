"""Convolutions on a CPU by the package's own C++ (`native_convolution.cc`), with gradients.

Two ways, as in `efficientad_jax.convolution`: Cook-Toom filtering, and products with patches.
Both need `native_library()` to be True, float32, and numbers of channels as said.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from efficientad_jax.native_library import TAPS

# Channels are worked on in groups of so many.
PANEL = 32


def suits_filtering(kernel: Float[Array, "kh kw c k"]) -> bool:
    """Whether `native_filter` takes this kernel."""
    height, width, channels, out = kernel.shape
    return height == width and height in TAPS and not channels % PANEL and not out % PANEL


def suits_patches(kernel: Float[Array, "kh kw c k"]) -> bool:
    """Whether `native_patch_filter` takes this kernel."""
    height, width, _, out = kernel.shape
    return height == width and not out % PANEL


def _call(name: str, shape: tuple[int, ...], *arrays: Array, **sizes: int) -> Array:
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = jax.ffi.ffi_call(f"efficientad_{name}", result, vmap_method="sequential")
    return call(*arrays, **{name: np.int64(size) for name, size in sizes.items()})


def _filter(x: Array, kernel: Array, padding: int) -> Array:
    taps, _, channels, out = kernel.shape
    points = taps + 3
    transformed = _call("transform_kernel", (points**2, out // PANEL, channels, PANEL), kernel)
    batch, height, width, _ = x.shape
    grown = 2 * padding - taps + 1
    shape = (batch, height + grown, width + grown, out)
    return _call("filter", shape, x, transformed, taps=taps, pad=padding)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def native_filter(
    x: Float[Array, "n h w c"], kernel: Float[Array, "r r c k"], padding: int
) -> Float[Array, "n oh ow k"]:
    """Correlates images with a kernel of 3 or 4 taps a side by Cook-Toom filtering, stride 1.

    Args:
      x: float32 images, `c` a multiple of 32.
      kernel: float32 filters, `k` a multiple of 32.
      padding: rows and columns of zeros around the images, fewer than taps.

    Returns:
      `[n, h + 2 padding - r + 1, ..., k]`, equal to a direct convolution to about 1e-5 of the
      largest output.
    """
    return _filter(x, kernel, padding)


def _filter_forward(x: Array, kernel: Array, padding: int):
    return _filter(x, kernel, padding), (x, kernel)


def _filter_backward(padding: int, residuals: tuple[Array, Array], dy: Array):
    x, kernel = residuals
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    dx = _call("input_gradient", x.shape, dy, turned, pad=padding)
    return dx, _call("kernel_gradient", kernel.shape, x, dy, pad=padding)


native_filter.defvjp(_filter_forward, _filter_backward)


def _patch_filter(x: Array, kernel: Array, stride: int) -> Array:
    batch, height, width, _ = x.shape
    side, out = kernel.shape[0], kernel.shape[3]
    shape = (batch, (height - side) // stride + 1, (width - side) // stride + 1, out)
    return _call("patch_filter", shape, x, kernel, stride=stride)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def native_patch_filter(
    x: Float[Array, "n h w c"], kernel: Float[Array, "r r c k"], stride: int
) -> Float[Array, "n oh ow k"]:
    """Correlates images with a kernel, patch by patch, without padding.

    Args:
      x: float32 images.
      kernel: float32 filters, `k` a multiple of 32.
      stride: step in both dimensions, in pixels.
    """
    return _patch_filter(x, kernel, stride)


def _patch_filter_forward(x: Array, kernel: Array, stride: int):
    return _patch_filter(x, kernel, stride), (x, kernel)


def _patch_filter_backward(stride: int, residuals: tuple[Array, Array], dy: Array):
    x, kernel = residuals
    return _spread(dy, kernel, stride, x.shape), _call(
        "patch_kernel_gradient", kernel.shape, x, dy, stride=stride
    )


def _spread(dy: Array, kernel: Array, stride: int, shape: tuple[int, ...]) -> Array:
    """Adds to each pixel what the outputs that saw it send back.

    In plain XLA: of the networks' layers only small ones need it, as the gradient of an image
    that nobody asked for is never computed.
    """
    side, _, channels, out = kernel.shape
    batch, rows, columns, _ = dy.shape
    blocks = -(-side // stride)
    sent = dy @ kernel.reshape(-1, out).T
    sent = sent.reshape(batch, rows, columns, side, side, channels)
    fill = blocks * stride - side
    sent = jnp.pad(sent, [(0, 0)] * 3 + [(0, fill)] * 2 + [(0, 0)])
    sent = sent.reshape(batch, rows, columns, blocks, stride, blocks, stride, channels)
    total = jnp.zeros(
        (batch, rows + blocks - 1, columns + blocks - 1, stride, stride, channels), dy.dtype
    )
    for i in range(blocks):
        for j in range(blocks):
            total = total.at[:, i : i + rows, j : j + columns].add(sent[:, :, :, i, :, j])
    total = total.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, (rows + blocks - 1) * stride, (columns + blocks - 1) * stride, channels
    )
    height, width = shape[1:3]
    short = (max(0, height - total.shape[1]), max(0, width - total.shape[2]))
    total = jnp.pad(total, ((0, 0), (0, short[0]), (0, short[1]), (0, 0)))
    return total[:, :height, :width]


native_patch_filter.defvjp(_patch_filter_forward, _patch_filter_backward)
