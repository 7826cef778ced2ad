"""The autoencoder for logical anomalies (paper, Section 3.3; layers: its supplement)."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from efficientad_jax.convolution import ConvolutionMethod
from efficientad_jax.networks.layers import Conv
from efficientad_jax.networks.resize import resize_bilinear

DROPOUT_RATE = 0.2


class _Encode(NamedTuple):
    """A convolution of the encoder, which no resizing precedes."""

    name: str
    kernel: int | None  # None: the size of its input
    stride: int
    out: int
    pad: int
    relu: bool


class _Decode(NamedTuple):
    """Bilinear resizing to `numerator / 256` of the image, less `minus`, and a convolution."""

    name: str
    numerator: int
    minus: int

    def size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width before the convolution, for images of this height and width."""
        height, width = (side * self.numerator // 256 - self.minus for side in image_size)
        return height, width


# name, kernel, stride, out, pad, ReLU.
ENCODER = (
    _Encode("enconv1", 4, 2, 32, 1, True),
    _Encode("enconv2", 4, 2, 32, 1, True),
    _Encode("enconv3", 4, 2, 64, 1, True),
    _Encode("enconv4", 4, 2, 64, 1, True),
    _Encode("enconv5", 4, 2, 64, 1, True),
    _Encode("enconv6", None, 1, 64, 0, False),
)

# After the resizing, each has a 4x4 convolution with 64 channels, pad 2, ReLU and dropout 0.2. For
# images of 256x256 the inputs of the convolutions are 3, 8, 15, 32, 63 and 127 pixels wide.
DECODER = (
    _Decode("deconv1", 4, 1),
    _Decode("deconv2", 8, 0),
    _Decode("deconv3", 16, 1),
    _Decode("deconv4", 32, 0),
    _Decode("deconv5", 64, 1),
    _Decode("deconv6", 128, 1),
)
# They are followed by resizing to `output_size`; deconv7: 3x3, 64 channels, pad 1, ReLU; deconv8:
# 3x3, pad 1.


class Autoencoder(nn.Module):
    """Predicts the teacher's features from the whole image through a bottleneck of 64 numbers.

    Attributes:
      out_channels: features of the teacher.
      output_size: height and width of the teacher's output, 56x56 for 256x256 without padding.
      dtype: of the computation; parameters are float32.
      convolution: how convolutions are computed, see `efficientad_jax.convolution`.
    """

    out_channels: int = 384
    output_size: tuple[int, int] = (56, 56)
    dtype: DTypeLike = jnp.float32
    convolution: ConvolutionMethod = "auto"

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w 3"], deterministic: bool = True
    ) -> Float[Array, "n oh ow c"]:
        """Encodes and decodes.

        Args:
          images: float32, ImageNet-normalized RGB, sides divisible by 32 and at least 128.
          deterministic: False during training: dropout is on and uses the rng 'dropout'.

        Returns:
          `[n, *output_size, out_channels]` of the dtype `dtype`.

        Raises:
          ValueError: a side is less than 128 or not divisible by 32.
        """
        height, width = images.shape[1:3]
        if height % 32 or width % 32 or min(height, width) < 128:
            raise ValueError(
                f"image of {height}x{width} pixels: expected sides divisible by 32, at least 128"
            )
        x = images.astype(self.dtype)
        for layer in ENCODER:
            x = self._encode(layer, x)
        for layer in DECODER:
            x = resize_bilinear(x, layer.size((height, width)), method=self.convolution)
            x = self._conv(layer.name, 64, 4, padding=2, relu=True)(x)
            x = nn.Dropout(DROPOUT_RATE, deterministic=deterministic)(x)
        x = resize_bilinear(x, self.output_size, method=self.convolution)
        x = self._conv("deconv7", 64, 3, padding=1, relu=True)(x)
        return self._conv("deconv8", self.out_channels, 3, padding=1)(x)

    def _encode(self, layer: _Encode, x: Array) -> Array:
        kernel = layer.kernel or (x.shape[1], x.shape[2])
        conv = self._conv(
            layer.name,
            layer.out,
            kernel,
            stride=layer.stride,
            padding=layer.pad,
            relu=layer.relu,
        )
        return conv(x)

    def _conv(
        self,
        name: str,
        features: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int = 0,
        relu: bool = False,
    ) -> Conv:
        return Conv(
            features=features,
            kernel_size=kernel,
            stride=stride,
            padding=padding,
            relu=relu,
            dtype=self.dtype,
            convolution=self.convolution,
            name=name,
        )
