"""The 2-D convolution of every network here, and the one place that decides how it is computed.

XLA's own convolution is the best there is on GPU and TPU. On CPU it reaches a fifth of the rate
of XLA's matrix products, and its gradients less, so there a convolution becomes matrix products:
by Cook-Toom filtering where that saves multiplications, otherwise on patches. They are computed
by C++ of the package where it can be compiled, otherwise by XLA's operations.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from efficientad_jax.cook_toom import cook_toom_convolution
from efficientad_jax.native_convolution import (
    native_filter,
    native_patch_filter,
    suits_filtering,
    suits_patches,
)
from efficientad_jax.native_library import native_library

Method = Literal["auto", "direct", "products", "native"]

# Cook-Toom pays where channels are many; its transforms cost the same for a few.
_FEWEST_CHANNELS = 32


def chosen_method(method: Method) -> Method:
    """What `method` means here, where it is 'auto': the one place that looks at the platform."""
    if method != "auto":
        return method
    if jax.default_backend() != "cpu":
        return "direct"
    return "native" if native_library() else "products"


def convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c k"],
    stride: int = 1,
    padding: int = 0,
    method: Method = "auto",
) -> Float[Array, "n oh ow k"]:
    """Correlates images with a kernel, zero padding on every side.

    Args:
      x: images, channels last.
      kernel: filters of the same dtype.
      stride: step in both dimensions, in pixels.
      padding: rows and columns of zeros added on each side.
      method: 'direct' is XLA's convolution; 'products' are XLA's matrix products (see the
        module); 'native' is the package's C++, for float32 and numbers of channels that suit it,
        and 'products' for others; 'auto' takes 'direct' on GPU and TPU, on CPU 'native' if there
        is a compiler.

    Returns:
      `[n, (h + 2 padding - kh) // stride + 1, ..., k]` of the dtype of `x`.

    Raises:
      RuntimeError: `method` is 'native' and the C++ cannot be compiled here.
    """
    method = chosen_method(method)
    if method == "direct":
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=((padding, padding), (padding, padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    if method == "native" and not native_library():
        raise RuntimeError("convolution 'native': no C++ compiler; take 'auto' or install g++")
    native = method == "native" and x.dtype == jnp.float32
    if native and stride == 1 and suits_filtering(kernel) and padding < kernel.shape[0]:
        return native_filter(x, kernel, padding)
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    kernel_height, kernel_width, channels, _ = kernel.shape
    if x.shape[1:3] == (kernel_height, kernel_width):
        return _whole_image_product(x, kernel)
    if native and suits_patches(kernel):
        return native_patch_filter(x, kernel, stride)
    if stride > 1:
        x, kernel = _stride_to_channels(x, kernel, stride)
        return _patch_products(x, kernel)
    filters_well = kernel_height == kernel_width in (3, 4) and channels >= _FEWEST_CHANNELS
    if filters_well and x.dtype == jnp.float32:
        return cook_toom_convolution(x, kernel)
    return _patch_products(x, kernel)


def _whole_image_product(x: Array, kernel: Array) -> Array:
    """A kernel as large as the image is one product."""
    y = x.reshape(x.shape[0], -1) @ kernel.reshape(-1, kernel.shape[-1])
    return y[:, None, None, :]


def _stride_to_channels(x: Array, kernel: Array, stride: int) -> tuple[Array, Array]:
    """Makes a strided convolution one of stride 1 over `stride**2` times the channels.

    Rows and columns the last window does not reach are cut, a kernel that is no multiple of the
    stride is filled up with zeros.
    """
    kernel_height, kernel_width, channels, out = kernel.shape
    more = (-kernel_height % stride, -kernel_width % stride)
    kernel = jnp.pad(kernel, ((0, more[0]), (0, more[1]), (0, 0), (0, 0)))
    blocks = (kernel.shape[0] // stride, kernel.shape[1] // stride)
    kernel = kernel.reshape(blocks[0], stride, blocks[1], stride, channels, out)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(*blocks, stride**2 * channels, out)

    batch, height, width, _ = x.shape
    rows = (height - kernel_height) // stride + blocks[0]
    columns = (width - kernel_width) // stride + blocks[1]
    short = (max(0, rows * stride - height), max(0, columns * stride - width))
    x = jnp.pad(x, ((0, 0), (0, short[0]), (0, short[1]), (0, 0)))
    x = x[:, : rows * stride, : columns * stride]
    x = x.reshape(batch, rows, stride, columns, stride, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows, columns, stride**2 * channels), kernel


def _patch_products(x: Array, kernel: Array) -> Array:
    """Stride 1, no padding: patches as rows of one matrix, times the kernel.

    Autodiff turns this into products and shifted sums, far faster on CPU than XLA's gradients of
    a convolution.
    """
    kernel_height, kernel_width, _, out = kernel.shape
    height = x.shape[1] - kernel_height + 1
    width = x.shape[2] - kernel_width + 1
    wide = jnp.concatenate([x[:, :, j : j + width] for j in range(kernel_width)], axis=-1)
    patches = jnp.concatenate([wide[:, i : i + height] for i in range(kernel_height)], axis=-1)
    return patches @ kernel.reshape(-1, out)
