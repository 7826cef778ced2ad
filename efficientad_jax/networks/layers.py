"""The layer that the networks are built from, and how their features are taken."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from efficientad_jax.convolution import (
    Method,
    convolve_and_finish,
    convolve_prepared,
    prepare_kernel,
)
from efficientad_jax.convolution.native import Finish

# The collection of variables that `prepared` adds.
_PREPARED = "prepared"


class Conv(nn.Module):
    """A 2-D convolution with a bias, initialised after He et al. (ICCV 2015).

    The paper names no initialisation. Implementations in PyTorch have its default, whose kernels
    are smaller by a factor of sqrt(6): through the autoencoder's 14 layers an image then arrives as
    nothing, and hundreds of steps go by before it learns anything but its biases.

    Attributes:
      features: output channels.
      kernel_size: of the kernel in pixels, one number where it is square.
      stride: step in both dimensions, in pixels.
      padding: rows and columns of zeros added on each side.
      relu: whether negative outputs become 0.
      pool: whether 2x2 outputs are averaged then, at stride 2.
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
    convolution: Method = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], channels: slice | None = None
    ) -> Float[Array, "n oh ow k"]:
        """Applies the layer; `channels` computes only these of the output channels."""
        size = self.kernel_size if isinstance(self.kernel_size, tuple) else (self.kernel_size,) * 2
        shape = (*size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if channels is not None:
            kernel, bias = kernel[..., channels], bias[channels]
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        x, finish = x.astype(self.dtype), Finish(self.relu, self.pool)
        if self.is_mutable_collection(_PREPARED) and not self.is_initializing():
            made = prepare_kernel(x, kernel, self.stride, self.padding, self.convolution)
            if made is not None:
                self.put_variable(_PREPARED, "kernel", made)
        elif self.has_variable(_PREPARED, "kernel"):
            made = self.get_variable(_PREPARED, "kernel")
            first = 0 if channels is None else channels.indices(self.features)[0]
            return convolve_prepared(
                x, made, bias, size[0], self.stride, self.padding, finish, first
            )
        return convolve_and_finish(
            x, kernel, bias, self.stride, self.padding, finish, self.convolution
        )


def float32_features(
    network: nn.Module, params: PyTree, *args: Any, **kwargs: Any
) -> Float[Array, "n h w c"]:
    """Applies a network; losses and maps are computed of its features in float32."""
    features: Any = network.apply(params, *args, **kwargs)
    return features.astype(jnp.float32)


def prepared(network: nn.Module, params: PyTree, image_size: tuple[int, int]) -> PyTree:
    """Parameters, and with them what convolutions on a CPU make of their kernels.

    A network applied to these need not do so again; it has no gradients then.

    Args:
      network: its module.
      params: its parameters.
      image_size: height and width of the images that it will get, one at a time or several.
    """
    image = jnp.zeros((1, *image_size, 3))
    _, made = network.apply(params, image, mutable=[_PREPARED])
    return {**params, **made}
