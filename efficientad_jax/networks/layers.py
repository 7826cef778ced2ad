"""The layer that all networks are built from, and functions that apply the networks."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree, UInt8

from efficientad_jax.convolution import (
    ConvolutionMethod,
    convolve_transformed,
    convolve_with_epilogue,
    transform_kernel,
)
from efficientad_jax.convolution.native import CHANNEL_BLOCK, Epilogue
from efficientad_jax.networks.preprocessing import IMAGENET_STD, normalize_images

# The collections of variables that `with_transformed_kernels` and `with_pixel_kernels` add.
_TRANSFORMED = "transformed"
_FOR_PIXELS = "for pixels"

# Subtracted from pixels: whole numbers from -128 to 127 are exact in bfloat16.
_CENTER = 128


class Conv(nn.Module):
    """A 2-D convolution with a bias, initialized as in He et al. (ICCV 2015).

    The paper does not name the initialization. PyTorch's default, which other implementations use,
    gives kernels that are smaller by a factor of sqrt(6). After the autoencoder's 14 layers the
    signal of an image then vanishes, and for hundreds of steps only the biases learn.

    Attributes:
      features: output channels.
      kernel_size: height and width of the kernel in pixels; one number for a square kernel.
      stride: step in both dimensions, in pixels.
      padding: rows and columns of zeros added on each side.
      relu: whether negative outputs become 0.
      pool: whether non-overlapping 2x2 windows are averaged after that.
      dtype: of the computation; parameters are float32.
      convolution: see `efficientad_jax.convolution`.
    """

    features: int
    kernel_size: int | tuple[int, int]
    stride: int = 1
    padding: int = 0
    relu: bool = False
    pool: bool = False
    dtype: DTypeLike = jnp.float32
    convolution: ConvolutionMethod = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"] | UInt8[Array, "n h w c"], channels: slice | None = None
    ) -> Float[Array, "n oh ow k"]:
        """Applies the layer; `channels` selects the output channels to compute.

        Of uint8 pixels it computes what it does of the normalized images, without rounding them to
        `dtype` first. That takes a layer without padding: normalized zeros are no whole numbers.
        """
        size = self.kernel_size if isinstance(self.kernel_size, tuple) else (self.kernel_size,) * 2
        shape = (*size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        is_pixels = x.dtype == jnp.uint8
        if is_pixels:
            x, kernel, bias = self._centered(x, kernel, bias)
        if channels is not None:
            kernel, bias = kernel[..., channels], bias[channels]
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        x, epilogue = x.astype(self.dtype), Epilogue(self.relu, self.pool)
        if self.is_mutable_collection(_TRANSFORMED) and not self.is_initializing():
            transformed = transform_kernel(
                x, kernel, self.stride, padding=self.padding, method=self.convolution
            )
            if transformed is not None:
                self.put_variable(_TRANSFORMED, "kernel", transformed)
        elif (
            self.has_variable(_TRANSFORMED, "kernel")
            and _suits_transformed(channels, bias)
            and not is_pixels
        ):
            return convolve_transformed(
                x,
                self.get_variable(_TRANSFORMED, "kernel"),
                bias,
                kernel_size=size[0],
                stride=self.stride,
                padding=self.padding,
                epilogue=epilogue,
                first_channel=0 if channels is None else channels.indices(self.features)[0],
            )
        return convolve_with_epilogue(
            x,
            kernel,
            bias,
            stride=self.stride,
            padding=self.padding,
            epilogue=epilogue,
            # Nothing but the shape matters then, and this one is traced in no time.
            method="direct" if self.is_initializing() else self.convolution,
        )

    def _centered(
        self, pixels: UInt8[Array, "n h w c"], kernel: Array, bias: Array
    ) -> tuple[Array, Array, Array]:
        """The pixels minus `_CENTER`, and a kernel and a bias that normalize them."""
        if self.padding:
            raise ValueError(f"padding = {self.padding}: expected 0 for images of uint8")
        if self.has_variable(_FOR_PIXELS, "kernel"):
            kernel = self.get_variable(_FOR_PIXELS, "kernel")
            bias = self.get_variable(_FOR_PIXELS, "bias")
        else:
            kernel, bias = _for_pixels(kernel, bias, self.dtype)
        return pixels.astype(jnp.int32) - _CENTER, kernel, bias


def _for_pixels(
    kernel: Float[Array, "kh kw 3 k"], bias: Float[Array, " k"], dtype: DTypeLike
) -> tuple[Float[Array, "kh kw 3 k"], Float[Array, " k"]]:
    """Kernel and bias for centered pixels, of those for normalized images."""
    center = normalize_images(jnp.full(3, _CENTER / 255, jnp.float32))
    shift = (kernel * center[:, None]).sum((0, 1, 2))
    kernel = _rounded_with_sums(kernel / (255 * IMAGENET_STD)[:, None], dtype)
    return kernel, (bias + shift).astype(dtype)


def _rounded_with_sums(
    kernel: Float[Array, "kh kw c k"], dtype: DTypeLike
) -> Float[Array, "kh kw c k"]:
    """Rounds a kernel so that the sum over its height and width keeps more of its precision.

    Neighboring pixels are much alike, so that an error of the sum is the largest part of an error
    of the outputs. The error of each value is added to the next smaller one before that is rounded,
    as in error diffusion: what is left is that of the smallest.
    """
    taps = kernel.reshape(-1, *kernel.shape[2:])
    order = jnp.argsort(-jnp.abs(taps), axis=0)
    error, rounded = jnp.zeros(taps.shape[1:], taps.dtype), []
    for tap in jnp.take_along_axis(taps, order, axis=0):
        # Not a cast there and back, which XLA leaves out.
        kept = lax.reduce_precision(tap + error, *_bits(dtype))
        error = tap + error - kept
        rounded.append(kept)
    back = jnp.argsort(order, axis=0)
    return jnp.take_along_axis(jnp.stack(rounded), back, axis=0).reshape(kernel.shape).astype(dtype)


def _bits(dtype: DTypeLike) -> tuple[int, int]:
    """The bits of a type's exponents and of its mantissas."""
    info = jnp.finfo(dtype)
    return info.nexp, info.nmant


def with_pixel_kernels(params: PyTree, first_layer: str, dtype: DTypeLike) -> PyTree:
    """Adds a kernel and a bias for pixels to a network that will get images of uint8.

    Args:
      params: of the network, in float32.
      first_layer: the name of the layer that sees the images.
      dtype: of the computation.
    """
    kernel, bias = _for_pixels(**params["params"][first_layer], dtype=dtype)
    return {**params, _FOR_PIXELS: {first_layer: {"kernel": kernel, "bias": bias}}}


def _suits_transformed(channels: slice | None, bias: Float[Array, " k"]) -> bool:
    """Whether a transformed kernel can compute only these channels: it has them in blocks."""
    first = 0 if channels is None or channels.start is None else channels.start
    return first % CHANNEL_BLOCK == 0 and bias.shape[0] % CHANNEL_BLOCK == 0


def float32_features(
    network: nn.Module, params: PyTree, *args: Any, **kwargs: Any
) -> Float[Array, "n h w c"]:
    """Applies a network; returns its features as float32, from which losses and maps are computed.

    Args:
      network: its module.
      params: its parameters.
      *args: passed on to the network, images first.
      **kwargs: passed on to `network.apply`.
    """
    features: Any = network.apply(params, *args, **kwargs)
    return features.astype(jnp.float32)


def with_transformed_kernels(
    network: nn.Module, params: PyTree, image_size: tuple[int, int]
) -> PyTree:
    """Adds the transformed kernels, which convolutions on a CPU use, to the parameters.

    A network that is applied to the result does not transform its kernels again. It has no
    gradients.

    Args:
      network: its module.
      params: its parameters.
      image_size: height and width of the images that the network will get, in any number.
    """
    image = jnp.zeros((1, *image_size, 3))
    _, transformed = network.apply(params, image, mutable=[_TRANSFORMED])
    return {**params, **transformed}
