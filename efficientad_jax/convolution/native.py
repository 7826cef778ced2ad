"""Convolutions on a CPU by the package's own C++ (`native.cc`), with gradients.

Two ways, as in `efficientad_jax.convolution`: Cook-Toom filtering, and products with patches.
Both need `native_library()` to be True, float32, and numbers of channels as said. Each adds the
bias, and where asked applies ReLU and averages 2x2 outputs, before anything is written to memory.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from efficientad_jax.convolution.native_build import TAPS

# Channels are worked on in groups of so many.
PANEL = 32


class Finish(NamedTuple):
    """What becomes of a convolution's outputs, the bias being added.

    Attributes:
      relu: whether negative ones become 0.
      pool: whether 2x2 of them, two apart, are averaged then; a last odd row or column is left out.
    """

    relu: bool = False
    pool: bool = False


PLAIN = Finish()


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


# ---- Cook-Toom filtering -------------------------------------------------------------------------


def prepare_filter(kernel: Float[Array, "r r c k"]) -> Float[Array, "p b c 32"]:
    """The kernel as `prepared_filter` takes it: transformed, in groups of output channels."""
    taps, _, channels, out = kernel.shape
    return _call("transform_kernel", ((taps + 3) ** 2, out // PANEL, channels, PANEL), kernel)


def prepared_filter(
    x: Float[Array, "n h w c"],
    prepared: Float[Array, "p b c 32"],
    bias: Float[Array, " k"],
    padding: int,
    finish: Finish = PLAIN,
    first_channel: int = 0,
) -> Float[Array, "n oh ow k"]:
    """`native_filter`, which this is without gradients, of a kernel prepared beforehand.

    Args:
      x: float32 images, `c` a multiple of 32.
      prepared: of `prepare_filter`.
      bias: of the output channels to compute.
      padding: rows and columns of zeros around the images, fewer than taps.
      finish: what becomes of the outputs.
      first_channel: where those begin among the kernel's; a multiple of 32, as is their number.
    """
    taps = int(np.sqrt(prepared.shape[0])) - 3
    batch, height, width, _ = x.shape
    grown = 2 * padding - taps + 1
    step = 2 if finish.pool else 1
    shape = (batch, (height + grown) // step, (width + grown) // step, *bias.shape)
    sizes = finish._asdict() | {"taps": taps, "pad": padding, "first": first_channel}
    return _call("filter", shape, x, prepared, bias, **sizes)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def native_filter(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "r r c k"],
    bias: Float[Array, " k"],
    padding: int,
    finish: Finish = PLAIN,
) -> Float[Array, "n oh ow k"]:
    """Correlates images with a kernel of 3 or 4 taps a side by Cook-Toom filtering, stride 1.

    Args:
      x: float32 images, `c` a multiple of 32.
      kernel: float32 filters, `k` a multiple of 32.
      bias: added to each output.
      padding: rows and columns of zeros around the images, fewer than taps.
      finish: what becomes of the outputs.

    Returns:
      `[n, h + 2 padding - r + 1, ..., k]`, half of it where 2x2 are averaged; equal to a direct
      convolution to about 1e-5 of the largest output.
    """
    return prepared_filter(x, prepare_filter(kernel), bias, padding, finish)


def _filter_forward(x: Array, kernel: Array, bias: Array, padding: int, finish: Finish):
    y = prepared_filter(x, prepare_filter(kernel), bias, padding, finish._replace(pool=False))
    return _pooled(y, finish), (x, kernel, y if finish.relu else None, _without_elements(y))


def _filter_backward(padding: int, finish: Finish, residuals, dy: Array):
    x, kernel, y, unpooled = residuals
    dy = _before_finish(dy, finish, y, unpooled.shape[:-1])
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    dx = _call("input_gradient", x.shape, dy, turned, pad=padding)
    return dx, _call("kernel_gradient", kernel.shape, x, dy, pad=padding), dy.sum((0, 1, 2))


native_filter.defvjp(_filter_forward, _filter_backward)


def _without_elements(x: Array) -> Array:
    """Carries a shape through residuals."""
    return jnp.zeros((*x.shape, 0))


def _pooled(y: Array, finish: Finish) -> Array:
    if not finish.pool:
        return y
    batch, height, width, channels = y.shape
    y = y[:, : height // 2 * 2, : width // 2 * 2]
    return y.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def _before_finish(dy: Array, finish: Finish, y: Array | None, shape: tuple[int, ...]) -> Array:
    """The gradient of a convolution's outputs, of shape `shape`, from that of what became of them.

    Args:
      dy: gradient of what became of them.
      finish: what did.
      y: outputs after ReLU, None without.
      shape: of the outputs.
    """
    if finish.pool:
        dy = jnp.repeat(jnp.repeat(0.25 * dy, 2, axis=1), 2, axis=2)
        odd = [(0, outputs - n) for outputs, n in zip(shape, dy.shape, strict=True)]
        dy = jnp.pad(dy, odd)
    return dy if y is None else jnp.where(y > 0, dy, 0.0)


# ---- Products with patches -----------------------------------------------------------------------


def prepare_patches(kernel: Float[Array, "r r c k"]) -> Float[Array, "b d 32"]:
    """The kernel as `prepared_patch_filter` takes it: in groups of output channels."""
    out = kernel.shape[3]
    return kernel.reshape(-1, out // PANEL, PANEL).swapaxes(0, 1)


def prepared_patch_filter(
    x: Float[Array, "n h w c"],
    prepared: Float[Array, "b d 32"],
    bias: Float[Array, " k"],
    side: int,
    stride: int,
    finish: Finish = PLAIN,
) -> Float[Array, "n oh ow k"]:
    """`native_patch_filter`, which this is without gradients, of a kernel prepared beforehand.

    Args:
      x: float32 images.
      prepared: of `prepare_patches`.
      bias: of the output channels, a multiple of 32.
      side: of the kernel, in pixels.
      stride: step in both dimensions, in pixels.
      finish: what becomes of the outputs.
    """
    batch, height, width, _ = x.shape
    step = 2 if finish.pool else 1
    rows, columns = ((size - side) // stride + 1 for size in (height, width))
    shape = (batch, rows // step, columns // step, *bias.shape)
    sizes = finish._asdict() | {"side": side, "stride": stride}
    return _call("patch_filter", shape, x, prepared, bias, **sizes)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def native_patch_filter(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "r r c k"],
    bias: Float[Array, " k"],
    stride: int,
    finish: Finish = PLAIN,
) -> Float[Array, "n oh ow k"]:
    """Correlates images with a kernel, patch by patch, without padding.

    Args:
      x: float32 images.
      kernel: float32 filters, `k` a multiple of 32.
      bias: added to each output.
      stride: step in both dimensions, in pixels.
      finish: what becomes of the outputs.
    """
    return prepared_patch_filter(x, prepare_patches(kernel), bias, kernel.shape[0], stride, finish)


def _patch_filter_forward(x: Array, kernel: Array, bias: Array, stride: int, finish: Finish):
    made, unpooled = prepare_patches(kernel), finish._replace(pool=False)
    y = prepared_patch_filter(x, made, bias, kernel.shape[0], stride, unpooled)
    return _pooled(y, finish), (x, kernel, y if finish.relu else None, _without_elements(y))


def _patch_filter_backward(stride: int, finish: Finish, residuals, dy: Array):
    x, kernel, y, unpooled = residuals
    dy = _before_finish(dy, finish, y, unpooled.shape[:-1])
    dx = _spread(dy, kernel, stride, x.shape)
    d_kernel = _call("patch_kernel_gradient", kernel.shape, x, dy, stride=stride)
    return dx, d_kernel, dy.sum((0, 1, 2))


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
