"""The 2-D convolution of every network here, and the one place that decides how it is computed.

XLA's own convolution is the best there is on GPU and TPU. On CPU it reaches a fifth of the rate
of XLA's matrix products, and its gradients less, so there a convolution becomes matrix products:
by Cook-Toom filtering where that saves multiplications, otherwise on patches. They are computed
by C++ of the package where it can be compiled, otherwise by XLA's operations.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from efficientad_jax.convolution.cook_toom import cook_toom_convolution
from efficientad_jax.convolution.native import (
    PANEL,
    PLAIN,
    Finish,
    native_filter,
    native_patch_filter,
    prepare_filter,
    prepare_patches,
    prepared_filter,
    prepared_patch_filter,
    suits_filtering,
    suits_patches,
)
from efficientad_jax.convolution.native_build import native_library

Method = Literal["auto", "direct", "products", "native"]
_Way = Literal["direct", "filter", "patches", "products", "whole image"]

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
    bias = jnp.zeros(kernel.shape[3:], x.dtype)
    way = _way(x, kernel, stride, padding, method)
    if way in ("filter", "patches"):
        return _native(way, x, kernel, bias, stride, padding, PLAIN)
    return _by_xla(way, x, kernel, stride, padding)


def convolve_and_finish(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c k"],
    bias: Float[Array, " k"],
    stride: int = 1,
    padding: int = 0,
    finish: Finish = PLAIN,
    method: Method = "auto",
) -> Float[Array, "n oh ow k"]:
    """`convolve`, the bias added, and ReLU and the average of 2x2 outputs as `finish` says.

    In the C++ that is one pass over memory.
    """
    way = _way(x, kernel, stride, padding, method)
    if way in ("filter", "patches"):
        return _native(way, x, kernel, bias, stride, padding, finish)
    y = _by_xla(way, x, kernel, stride, padding) + bias
    y = nn.relu(y) if finish.relu else y
    return nn.avg_pool(y, window_shape=(2, 2), strides=(2, 2)) if finish.pool else y


def prepare_kernel(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c k"],
    stride: int = 1,
    padding: int = 0,
    method: Method = "auto",
) -> Array | None:
    """What the C++ makes of a kernel before it is used, None where that is nothing.

    Args:
      x: images as `convolve` will get them; only shape and dtype count.
      kernel: see `convolve`, as are the others.
      stride: of the convolution.
      padding: of the convolution.
      method: of the convolution.
    """
    match _way(x, kernel, stride, padding, method):
        case "filter":
            return prepare_filter(kernel)
        case "patches":
            return prepare_patches(kernel)
        case _:
            return None


def convolve_prepared(
    x: Float[Array, "n h w c"],
    prepared: Array,
    bias: Float[Array, " k"],
    side: int,
    stride: int = 1,
    padding: int = 0,
    finish: Finish = PLAIN,
    first_channel: int = 0,
) -> Float[Array, "n oh ow k"]:
    """`convolve_and_finish`, which this is without gradients, of a kernel prepared beforehand.

    Args:
      x: images.
      prepared: of `prepare_kernel` for images of this size and type.
      bias: of the output channels to compute; their number is a multiple of 32.
      side: of the kernel, in pixels.
      stride: see `prepare_kernel`.
      padding: see `prepare_kernel`.
      finish: what becomes of the outputs.
      first_channel: where the output channels begin among the kernel's, a multiple of 32.
    """
    if prepared.ndim == 4:
        return prepared_filter(x, prepared, bias, padding, finish, first_channel)
    first, count = first_channel // PANEL, bias.shape[0] // PANEL
    prepared = prepared[first : first + count]
    return prepared_patch_filter(_padded(x, padding), prepared, bias, side, stride, finish)


def _way(x: Array, kernel: Array, stride: int, padding: int, method: Method) -> _Way:
    """How a convolution is computed: decided here alone."""
    method = chosen_method(method)
    if method == "direct":
        return "direct"
    if method == "native" and not native_library():
        raise RuntimeError("convolution 'native': no C++ compiler; take 'auto' or install g++")
    native = method == "native" and x.dtype == jnp.float32
    if native and stride == 1 and suits_filtering(kernel) and padding < kernel.shape[0]:
        return "filter"
    if tuple(size + 2 * padding for size in x.shape[1:3]) == kernel.shape[:2]:
        return "whole image"
    return "patches" if native and suits_patches(kernel) else "products"


def _native(
    way: _Way,
    x: Array,
    kernel: Array,
    bias: Array,
    stride: int,
    padding: int,
    finish: Finish,
) -> Array:
    if way == "filter":
        return native_filter(x, kernel, bias, padding, finish)
    return native_patch_filter(_padded(x, padding), kernel, bias, stride, finish)


def _by_xla(way: _Way, x: Array, kernel: Array, stride: int, padding: int) -> Array:
    if way == "direct":
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=((padding, padding), (padding, padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    x = _padded(x, padding)
    if way == "whole image":
        return _whole_image_product(x, kernel)
    if stride > 1:
        x, kernel = _stride_to_channels(x, kernel, stride)
        return _patch_products(x, kernel)
    kernel_height, kernel_width, channels, _ = kernel.shape
    filters_well = kernel_height == kernel_width in (3, 4) and channels >= _FEWEST_CHANNELS
    if filters_well and x.dtype == jnp.float32:
        return cook_toom_convolution(x, kernel)
    return _patch_products(x, kernel)


def _padded(x: Array, padding: int) -> Array:
    if not padding:
        return x
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


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
