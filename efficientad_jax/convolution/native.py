"""Convolutions on CPU by the package's own C++ (`native.cc`), with gradients.

There are two algorithms, as in `efficientad_jax.convolution`: Cook-Toom filtering, and products
with patches. Both need `native_library()` to be True, float32 arrays, and the numbers of channels
that each function states. Each adds the bias and applies the epilogue (ReLU, 2x2 average pooling)
before it writes to memory.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from efficientad_jax.convolution.native_build import TAPS

# The C++ computes output channels in blocks of this many (`kPanel` there).
CHANNEL_BLOCK = 32


class Epilogue(NamedTuple):
    """Operations that are applied to a convolution's outputs after the bias, in this order.

    Attributes:
      relu: whether negative values become 0.
      pool: whether to average non-overlapping 2x2 windows; a last odd row or column is dropped.
    """

    relu: bool = False
    pool: bool = False


NO_EPILOGUE = Epilogue()


def suits_filtering(kernel: Float[Array, "kh kw c k"]) -> bool:
    """Whether `native_filter` supports this kernel."""
    height, width, channels, out = kernel.shape
    return (
        height == width
        and height in TAPS
        and not channels % CHANNEL_BLOCK
        and not out % CHANNEL_BLOCK
    )


def suits_patches(kernel: Float[Array, "kh kw c k"]) -> bool:
    """Whether `native_patch_filter` supports this kernel."""
    height, width, _, out = kernel.shape
    return height == width and not out % CHANNEL_BLOCK


def _call(name: str, shape: tuple[int, ...], *arrays: Array, **sizes: int) -> Array:
    """Calls a C++ function, which returns a float32 array of this shape."""
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = jax.ffi.ffi_call(f"efficientad_{name}", result, vmap_method="sequential")
    return call(*arrays, **{name: np.int64(size) for name, size in sizes.items()})


# ---- Cook-Toom filtering -------------------------------------------------------------------------


def transform_filter_kernel(kernel: Float[Array, "r r c k"]) -> Float[Array, "p b c 32"]:
    """Transforms a kernel for `native_filter_transformed`.

    Returns:
      `[(r + 3)**2, k / 32, c, 32]`: for each position of the transformed kernel, its values in
      blocks of output channels.
    """
    taps, _, channels, out = kernel.shape
    shape = ((taps + 3) ** 2, out // CHANNEL_BLOCK, channels, CHANNEL_BLOCK)
    return _call("transform_kernel", shape, kernel)


def native_filter_transformed(
    x: Float[Array, "n h w c"],
    transformed: Float[Array, "p b c 32"],
    bias: Float[Array, " k"],
    *,
    padding: int,
    epilogue: Epilogue = NO_EPILOGUE,
    first_channel: int = 0,
) -> Float[Array, "n oh ow k"]:
    """Computes `native_filter` with a kernel that is already transformed; it has no gradients.

    Args:
      x: float32 images, `c` a multiple of 32.
      transformed: the result of `transform_filter_kernel`.
      bias: of the output channels to compute; their number is a multiple of 32.
      padding: rows and columns of zeros around the images, fewer than taps.
      epilogue: applied to the outputs after the bias.
      first_channel: index of the first output channel to compute, a multiple of 32.
    """
    taps = int(np.sqrt(transformed.shape[0])) - 3
    batch, height, width, _ = x.shape
    grown = 2 * padding - taps + 1
    step = 2 if epilogue.pool else 1
    shape = (batch, (height + grown) // step, (width + grown) // step, *bias.shape)
    sizes = epilogue._asdict() | {"taps": taps, "pad": padding, "first": first_channel}
    return _call("filter", shape, x, transformed, bias, **sizes)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def native_filter(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "r r c k"],
    bias: Float[Array, " k"],
    padding: int,  # positional, as `custom_vjp` requires of `nondiff_argnums`
    epilogue: Epilogue = NO_EPILOGUE,
) -> Float[Array, "n oh ow k"]:
    """Correlates images with a 3x3 or 4x4 kernel by Cook-Toom filtering, stride 1.

    Args:
      x: float32 images, `c` a multiple of 32.
      kernel: float32 filters, `k` a multiple of 32.
      bias: added to each output.
      padding: rows and columns of zeros around the images, fewer than taps.
      epilogue: applied to the outputs after the bias.

    Returns:
      `[n, h + 2 padding - r + 1, ..., k]`, with half the height and width if the epilogue pools.
      It equals a direct convolution up to about 1e-5 of the largest output.
    """
    transformed = transform_filter_kernel(kernel)
    return native_filter_transformed(x, transformed, bias, padding=padding, epilogue=epilogue)


def _filter_forward(x: Array, kernel: Array, bias: Array, padding: int, epilogue: Epilogue):
    transformed, unpooled = transform_filter_kernel(kernel), epilogue._replace(pool=False)
    y = native_filter_transformed(x, transformed, bias, padding=padding, epilogue=unpooled)
    return _pooled(y, epilogue), (x, kernel, y if epilogue.relu else None, _without_elements(y))


def _filter_backward(padding: int, epilogue: Epilogue, residuals, dy: Array):
    x, kernel, y, unpooled = residuals
    dy = _before_epilogue(dy, epilogue, y, shape=unpooled.shape[:-1])
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    dx = _call("input_gradient", x.shape, dy, flipped, pad=padding)
    return dx, _call("kernel_gradient", kernel.shape, x, dy, pad=padding), dy.sum((0, 1, 2))


native_filter.defvjp(_filter_forward, _filter_backward)


def _without_elements(x: Array) -> Array:
    """Makes an empty array that carries the shape of `x` through the residuals."""
    return jnp.zeros((*x.shape, 0))


def _pooled(y: Array, epilogue: Epilogue) -> Array:
    if not epilogue.pool:
        return y
    batch, height, width, channels = y.shape
    y = y[:, : height // 2 * 2, : width // 2 * 2]
    return y.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def _before_epilogue(
    dy: Array, epilogue: Epilogue, y: Array | None, *, shape: tuple[int, ...]
) -> Array:
    """Propagates a gradient back through an epilogue.

    Args:
      dy: gradient with respect to the epilogue's outputs.
      epilogue: the one that was applied.
      y: values after its ReLU, None if it has none.
      shape: of the convolution's outputs.

    Returns:
      The gradient with respect to the convolution's outputs, of shape `shape`.
    """
    if epilogue.pool:
        dy = jnp.repeat(jnp.repeat(0.25 * dy, 2, axis=1), 2, axis=2)
        odd = [(0, outputs - n) for outputs, n in zip(shape, dy.shape, strict=True)]
        dy = jnp.pad(dy, odd)
    return dy if y is None else jnp.where(y > 0, dy, 0.0)


# ---- Products with patches -----------------------------------------------------------------------


def transform_patch_kernel(kernel: Float[Array, "r r c k"]) -> Float[Array, "b d 32"]:
    """Rearranges a kernel for `native_patch_filter_transformed`, in blocks of output channels.

    Returns:
      `[k / 32, r * r * c, 32]`.
    """
    out = kernel.shape[3]
    return kernel.reshape(-1, out // CHANNEL_BLOCK, CHANNEL_BLOCK).swapaxes(0, 1)


def native_patch_filter_transformed(
    x: Float[Array, "n h w c"],
    transformed: Float[Array, "b d 32"],
    bias: Float[Array, " k"],
    *,
    kernel_size: int,
    stride: int,
    epilogue: Epilogue = NO_EPILOGUE,
) -> Float[Array, "n oh ow k"]:
    """Computes `native_patch_filter` with a transformed kernel; it has no gradients.

    Args:
      x: float32 images.
      transformed: the result of `transform_patch_kernel`.
      bias: of the output channels; their number is a multiple of 32.
      kernel_size: height and width of the kernel, in pixels.
      stride: step in both dimensions, in pixels.
      epilogue: applied to the outputs after the bias.
    """
    batch, height, width, _ = x.shape
    step = 2 if epilogue.pool else 1
    rows, columns = ((size - kernel_size) // stride + 1 for size in (height, width))
    shape = (batch, rows // step, columns // step, *bias.shape)
    sizes = epilogue._asdict() | {"side": kernel_size, "stride": stride}
    return _call("patch_filter", shape, x, transformed, bias, **sizes)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def native_patch_filter(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "r r c k"],
    bias: Float[Array, " k"],
    stride: int,  # positional, as `custom_vjp` requires of `nondiff_argnums`
    epilogue: Epilogue = NO_EPILOGUE,
) -> Float[Array, "n oh ow k"]:
    """Correlates images with a kernel, patch by patch, without padding.

    Args:
      x: float32 images.
      kernel: float32 filters, `k` a multiple of 32.
      bias: added to each output.
      stride: step in both dimensions, in pixels.
      epilogue: applied to the outputs after the bias.
    """
    return native_patch_filter_transformed(
        x,
        transform_patch_kernel(kernel),
        bias,
        kernel_size=kernel.shape[0],
        stride=stride,
        epilogue=epilogue,
    )


def _patch_filter_forward(x: Array, kernel: Array, bias: Array, stride: int, epilogue: Epilogue):
    y = native_patch_filter_transformed(
        x,
        transform_patch_kernel(kernel),
        bias,
        kernel_size=kernel.shape[0],
        stride=stride,
        epilogue=epilogue._replace(pool=False),
    )
    return _pooled(y, epilogue), (x, kernel, y if epilogue.relu else None, _without_elements(y))


def _patch_filter_backward(stride: int, epilogue: Epilogue, residuals, dy: Array):
    x, kernel, y, unpooled = residuals
    dy = _before_epilogue(dy, epilogue, y, shape=unpooled.shape[:-1])
    dx = _patch_input_gradient(dy, kernel, stride, shape=x.shape)
    d_kernel = _call("patch_kernel_gradient", kernel.shape, x, dy, stride=stride)
    return dx, d_kernel, dy.sum((0, 1, 2))


def _patch_input_gradient(
    dy: Array, kernel: Array, stride: int, *, shape: tuple[int, ...]
) -> Array:
    """Computes the gradient with respect to the images, of shape `shape`.

    Each pixel's gradient is the sum over the outputs that it contributes to. XLA computes it:
    only small layers of the networks need it, as no gradient is taken with respect to the input
    images.
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
