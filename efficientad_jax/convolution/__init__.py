"""The 2-D convolution that every network uses, and the choice of how to compute it.

On GPU and TPU, XLA's own convolution is the fastest. On CPU it reaches a fifth of the speed of
XLA's matrix products, and its gradients are slower still. There, convolutions are computed as
matrix products: by Cook-Toom filtering where it saves multiplications, and otherwise on patches.
The package's C++ computes these products if it can be compiled; otherwise XLA does.

Everything that depends on the platform depends on the method, which names it: 'gpu' and 'tpu' are
methods. A program can therefore be compiled for a platform that is not the one it is compiled on.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from efficientad_jax.convolution.cook_toom import cook_toom_convolution
from efficientad_jax.convolution.native import (
    CHANNEL_BLOCK,
    NO_EPILOGUE,
    Epilogue,
    native_filter,
    native_filter_transformed,
    native_patch_filter,
    native_patch_filter_transformed,
    suits_filtering,
    suits_patches,
    transform_filter_kernel,
    transform_patch_kernel,
)
from efficientad_jax.convolution.native_build import native_library

ConvolutionMethod = Literal["auto", "direct", "gpu", "tpu", "products", "native"]
_Algorithm = Literal["direct", "padded first", "filter", "patches", "products", "whole image"]

# A TPU's compiler arranges one image of fewer channels in a way that takes half as long again.
_FEWEST_TPU_CHANNELS = 8

# JAX's names of GPUs, which depend on its version and on what asks.
_GPU_NAMES = ("gpu", "cuda", "rocm")

# Cook-Toom filtering pays off where channels are many: its transforms cost as much for few.
_FEWEST_CHANNELS = 32


def chosen_method(method: ConvolutionMethod) -> ConvolutionMethod:
    """Resolves 'auto' for JAX's default device; this is the only place that looks at it.

    Whoever compiles for another platform names 'gpu' or 'tpu'.
    """
    if method != "auto":
        return method
    platform = _default_platform()
    if platform in _GPU_NAMES:
        return "gpu"
    if platform == "tpu":
        return "tpu"
    if platform != "cpu":
        return "direct"
    return "native" if native_library() else "products"


def is_for_accelerator(method: ConvolutionMethod) -> bool:
    """Whether the method is one for accelerators: they compute the images of a batch together."""
    return chosen_method(method) in ("direct", "gpu", "tpu")


def _default_platform() -> str:
    """The platform of JAX's default device, which `jax.default_device` may have changed."""
    device: Any = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c k"],
    stride: int = 1,
    *,
    padding: int = 0,
    method: ConvolutionMethod = "auto",
) -> Float[Array, "n oh ow k"]:
    """Correlates images with a kernel.

    Args:
      x: images, channels last.
      kernel: filters of the same dtype.
      stride: step in both dimensions, in pixels.
      padding: rows and columns of zeros added on each side.
      method: 'direct' is XLA's convolution. 'gpu' and 'tpu' are the same in the form that XLA
        compiles best for these platforms. 'products' are XLA's matrix products (see the module).
        'native' is the package's C++; float16 and bfloat16 images, and numbers of channels that it
        does not support, fall back to 'products'. 'auto' is 'gpu' on a GPU, 'tpu' on a TPU and
        'direct' on other accelerators; on CPU it is 'native' if there is a compiler and 'products'
        if not.

    Returns:
      `[n, (h + 2 padding - kh) // stride + 1, ..., k]` of the dtype of `x`.

    Raises:
      RuntimeError: `method` is 'native' and the C++ cannot be compiled here.
    """
    bias = jnp.zeros(kernel.shape[3:], x.dtype)
    algorithm = _algorithm(x, kernel, stride, padding=padding, method=method)
    if algorithm in ("filter", "patches"):
        return _native(
            algorithm, x, kernel, bias=bias, stride=stride, padding=padding, epilogue=NO_EPILOGUE
        )
    return _by_xla(algorithm, x, kernel, stride=stride, padding=padding)


def convolve_with_epilogue(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c k"],
    bias: Float[Array, " k"],
    *,
    stride: int = 1,
    padding: int = 0,
    epilogue: Epilogue = NO_EPILOGUE,
    method: ConvolutionMethod = "auto",
) -> Float[Array, "n oh ow k"]:
    """Computes `convolve`, adds the bias, and applies the epilogue (ReLU, 2x2 average pooling).

    The C++ does all of it in one pass over memory.
    """
    algorithm = _algorithm(x, kernel, stride, padding=padding, method=method)
    if algorithm in ("filter", "patches"):
        return _native(
            algorithm, x, kernel, bias=bias, stride=stride, padding=padding, epilogue=epilogue
        )
    if chosen_method(method) == "tpu":
        x, kernel = _suited_to_tpu(x, kernel, pooled=epilogue.pool and stride == 1 and not padding)
    y = _by_xla(algorithm, x, kernel, stride=stride, padding=padding) + bias
    if epilogue == Epilogue(relu=True, pool=True) and chosen_method(method) == "gpu":
        return _relu_and_pool(y)
    y = nn.relu(y) if epilogue.relu else y
    return nn.avg_pool(y, window_shape=(2, 2), strides=(2, 2)) if epilogue.pool else y


def transform_kernel(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c k"],
    stride: int = 1,
    *,
    padding: int = 0,
    method: ConvolutionMethod = "auto",
) -> Array | None:
    """Transforms a kernel into the form that the C++ uses; None if the C++ is not used for it.

    Args:
      x: images as `convolve` will get them; only shape and dtype matter.
      kernel: see `convolve`, as for the arguments below.
      stride: of the convolution.
      padding: of the convolution.
      method: of the convolution.
    """
    match _algorithm(x, kernel, stride, padding=padding, method=method):
        case "filter":
            return transform_filter_kernel(kernel)
        case "patches":
            return transform_patch_kernel(kernel)
        case _:
            return None


def convolve_transformed(
    x: Float[Array, "n h w c"],
    transformed: Array,
    bias: Float[Array, " k"],
    *,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    epilogue: Epilogue = NO_EPILOGUE,
    first_channel: int = 0,
) -> Float[Array, "n oh ow k"]:
    """Computes `convolve_with_epilogue` with a kernel that is already transformed.

    It has no gradients.

    Args:
      x: images.
      transformed: the result of `transform_kernel` for images of this size and dtype.
      bias: of the output channels to compute; their number is a multiple of 32.
      kernel_size: height and width of the kernel, in pixels.
      stride: see `transform_kernel`.
      padding: see `transform_kernel`.
      epilogue: applied to the outputs after the bias.
      first_channel: index of the first output channel to compute, a multiple of 32.
    """
    if transformed.ndim == 4:
        return native_filter_transformed(
            x, transformed, bias, padding=padding, epilogue=epilogue, first_channel=first_channel
        )
    first, count = first_channel // CHANNEL_BLOCK, bias.shape[0] // CHANNEL_BLOCK
    return native_patch_filter_transformed(
        _padded(x, padding),
        transformed[first : first + count],
        bias,
        kernel_size=kernel_size,
        stride=stride,
        epilogue=epilogue,
    )


def _algorithm(
    x: Array, kernel: Array, stride: int, *, padding: int, method: ConvolutionMethod
) -> _Algorithm:
    """Chooses how to compute a convolution; no other place decides it."""
    method = chosen_method(method)
    if method == "direct":
        return "direct"
    if method == "native" and not native_library():
        raise RuntimeError(
            "convolution 'native': no C++ compiler found; use 'auto', or install g++"
        )
    native = method == "native" and x.dtype == jnp.float32
    if native and stride == 1 and suits_filtering(kernel) and padding < kernel.shape[0]:
        return "filter"
    if tuple(size + 2 * padding for size in x.shape[1:3]) == kernel.shape[:2]:
        # For XLA's convolution cuDNN gets a kernel's gradient, with swapped operands.
        return "whole image"
    if method == "gpu":
        # XLA swaps the operands of the kernel's gradient if the outputs are larger than the
        # unpadded images. cuDNN then gets a convolution with a kernel as large as an image, which
        # took two thirds of a distillation's step on an H100.
        return "padded first" if 2 * padding >= max(kernel.shape[:2]) else "direct"
    if method == "tpu":
        return "direct"
    return "patches" if native and suits_patches(kernel) else "products"


def _native(
    algorithm: _Algorithm,
    x: Array,
    kernel: Array,
    *,
    bias: Array,
    stride: int,
    padding: int,
    epilogue: Epilogue,
) -> Array:
    if algorithm == "filter":
        return native_filter(x, kernel, bias, padding, epilogue)
    return native_patch_filter(_padded(x, padding), kernel, bias, stride, epilogue)


def _by_xla(algorithm: _Algorithm, x: Array, kernel: Array, *, stride: int, padding: int) -> Array:
    if algorithm in ("direct", "padded first"):
        if algorithm == "padded first":
            # The barrier keeps XLA from folding the zeros into the convolution again.
            x, padding = lax.optimization_barrier(_padded(x, padding)), 0
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=((padding, padding), (padding, padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    x = _padded(x, padding)
    if algorithm == "whole image":
        return _whole_image_product(x, kernel)
    if stride > 1:
        x, kernel = _stride_to_channels(x, kernel, stride)
        return _patch_products(x, kernel)
    kernel_height, kernel_width, channels, _ = kernel.shape
    filters_well = kernel_height == kernel_width in (3, 4) and channels >= _FEWEST_CHANNELS
    if filters_well and x.dtype == jnp.float32:
        return cook_toom_convolution(x, kernel)
    return _patch_products(x, kernel)


def _suited_to_tpu(x: Array, kernel: Array, *, pooled: bool) -> tuple[Array, Array]:
    """Images and a kernel with the same outputs, which take a TPU less time.

    If the outputs are averaged, an odd row or column at their end is left out: no average reads it,
    and the gradients of the average need fewer copies without it.
    """
    if pooled:
        odd = [
            (size - side + 1) % 2 for size, side in zip(x.shape[1:3], kernel.shape, strict=False)
        ]
        x = x[:, : x.shape[1] - odd[0], : x.shape[2] - odd[1]]
    if len(x) == 1 and x.shape[-1] < _FEWEST_TPU_CHANNELS:
        more = (0, _FEWEST_TPU_CHANNELS - x.shape[-1])
        none = (0, 0)
        x, kernel = jnp.pad(x, (none, none, none, more)), jnp.pad(kernel, (none, none, more, none))
    return x, kernel


@jax.custom_vjp
def _relu_and_pool(y: Array) -> Array:
    """ReLU and 2x2 average pooling, with gradients that read each of their inputs once.

    JAX's gradient of the average puts zeros between its elements and adds them up in windows, in
    arrays as large as `y`. On a TPU that is the cheaper way all the same.
    """
    return nn.avg_pool(nn.relu(y), window_shape=(2, 2), strides=(2, 2))


def _relu_and_pool_forward(y: Array) -> tuple[Array, Array]:
    return _relu_and_pool(y), y


def _relu_and_pool_backward(y: Array, gradient: Array) -> tuple[Array]:
    rows, columns = (np.minimum(np.arange(n) // 2, n // 2 - 1) for n in y.shape[1:3])
    # The last row and column of an odd number are in no window.
    inside = (np.arange(y.shape[1]) < 2 * (y.shape[1] // 2))[:, None, None]
    inside = inside & (np.arange(y.shape[2]) < 2 * (y.shape[2] // 2))[:, None]
    spread = jnp.take(jnp.take(gradient, rows, axis=1), columns, axis=2)
    return (jnp.where((y > 0) & inside, spread / 4, 0),)


_relu_and_pool.defvjp(_relu_and_pool_forward, _relu_and_pool_backward)


def _padded(x: Array, padding: int) -> Array:
    if not padding:
        return x
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _whole_image_product(x: Array, kernel: Array) -> Array:
    """Computes the convolution with a kernel as large as the image: one product."""
    y = x.reshape(x.shape[0], -1) @ kernel.reshape(-1, kernel.shape[-1])
    return y[:, None, None, :]


def _stride_to_channels(x: Array, kernel: Array, stride: int) -> tuple[Array, Array]:
    """Turns a strided convolution into one of stride 1 with `stride**2` times the channels.

    Rows and columns that the last window does not reach are cut off. A kernel whose size is not a
    multiple of the stride is padded with zeros.
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
    """Multiplies a matrix whose rows are the patches by the kernel; stride 1, no padding.

    Automatic differentiation turns this into products and shifted sums, which on CPU are far
    faster than XLA's gradients of a convolution.
    """
    kernel_height, kernel_width, _, out = kernel.shape
    height = x.shape[1] - kernel_height + 1
    width = x.shape[2] - kernel_width + 1
    wide = jnp.concatenate([x[:, :, j : j + width] for j in range(kernel_width)], axis=-1)
    patches = jnp.concatenate([wide[:, i : i + height] for i in range(kernel_height)], axis=-1)
    return patches @ kernel.reshape(-1, out)
