"""The patch description network, S and M (paper, Section 3.1; layers: its supplement)."""

from itertools import pairwise
from typing import NamedTuple, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from efficientad_jax.config import Size as Size
from efficientad_jax.convolution import ConvolutionMethod
from efficientad_jax.networks.layers import Conv

# An output of the network depends on 33x33 pixels; neighboring outputs are 4 pixels apart.
RECEPTIVE_FIELD = 33
STRIDE = 4
# Without padding, the output lacks this many rows and columns on each side.
MARGIN = 4

SIZES: tuple[Size, ...] = get_args(Size)
# As in PDN-S and EfficientAD-S, the names in the paper.
LETTERS: dict[Size, str] = {"small": "S", "medium": "M"}
NAMES: dict[Size, str] = {size: f"EfficientAD-{letter}" for size, letter in LETTERS.items()}


class ConvLayer(NamedTuple):
    """A convolution with stride 1 and a bias."""

    name: str
    kernel: int
    out: int | None  # None: the module's `out_channels`
    pad: int
    relu: bool


class AvgPoolLayer(NamedTuple):
    """2x2 average pooling with stride 2; zeros of the padding count in the mean."""

    name: str
    pad: int


# name, kernel, out, pad, ReLU. The pads apply if `padding` is on; otherwise all of them are 0.
LAYERS: dict[str, tuple[ConvLayer | AvgPoolLayer, ...]] = {
    "small": (
        ConvLayer("conv1", 4, 128, 3, True),
        AvgPoolLayer("avgpool1", 1),
        ConvLayer("conv2", 4, 256, 3, True),
        AvgPoolLayer("avgpool2", 1),
        ConvLayer("conv3", 3, 256, 1, True),
        ConvLayer("conv4", 4, None, 0, False),
    ),
    "medium": (
        ConvLayer("conv1", 4, 256, 3, True),
        AvgPoolLayer("avgpool1", 1),
        ConvLayer("conv2", 4, 512, 3, True),
        AvgPoolLayer("avgpool2", 1),
        ConvLayer("conv3", 1, 512, 0, True),
        ConvLayer("conv4", 3, 512, 1, True),
        ConvLayer("conv5", 4, None, 0, True),
        ConvLayer("conv6", 1, None, 0, False),
    ),
}


def output_size(height: int, width: int, padding: bool = False) -> tuple[int, int]:
    """Computes height and width of a PDN's output for an image of this size (multiples of 4).

    256x256 gives 56x56, or 64x64 with padding.
    """
    lost = 0 if padding else 2 * MARGIN
    return height // STRIDE - lost, width // STRIDE - lost


class PatchDescriptionNetwork(nn.Module):
    """Describes every 33x33 patch of an image by a vector of `out_channels` features.

    The teacher has 384 channels and the student 768: the student's first half imitates the
    teacher, its second half the autoencoder.

    Attributes:
      size: 'small' (PDN-S) or 'medium' (PDN-M).
      out_channels: features of a patch.
      padding: whether layers are padded with zeros (256x256 -> 64x64, as in distillation) or not
        (256x256 -> 56x56, as in anomaly detection).
      dtype: of the computation; parameters are float32.
      convolution: how convolutions are computed, see `efficientad_jax.convolution`.
    """

    size: Size = "small"
    out_channels: int = 384
    padding: bool = False
    dtype: DTypeLike = jnp.float32
    convolution: ConvolutionMethod = "auto"

    def setup(self) -> None:
        """Creates a submodule for each convolution, with its name in the table."""
        if self.size not in LAYERS:
            raise ValueError(f"PDN size {self.size!r}: expected one of {', '.join(LAYERS)}")
        for layer, following in pairwise((*LAYERS[self.size], None)):
            if isinstance(layer, ConvLayer):
                pad = layer.pad if self.padding else 0
                conv = Conv(
                    features=self.out_channels if layer.out is None else layer.out,
                    kernel_size=layer.kernel,
                    padding=pad,
                    relu=layer.relu,
                    pool=isinstance(following, AvgPoolLayer) and not self.padding,
                    dtype=self.dtype,
                    convolution=self.convolution,
                )
                setattr(self, layer.name, conv)

    def __call__(
        self,
        images: Float[Array, "n h w 3"] | UInt8[Array, "n h w 3"],
        channels: slice | None = None,
    ) -> Float[Array, "n oh ow c"]:
        """Computes the features of every patch.

        Args:
          images: float32, ImageNet-normalized RGB; without padding at least 33x33 pixels. Without
            padding they may also be uint8 RGB, which are normalized without being rounded to
            `dtype`.
          channels: output channels to compute, by default all. It only restricts the last layer:
            `network(x, channels=s)` equals `network(x)[..., s]`.

        Returns:
          `[n, h // 4 - 8, w // 4 - 8, out_channels]`, or `[n, h // 4, w // 4, out_channels]` with
          padding, for sides that are multiples of 4; of the dtype `dtype`.
        """
        return self.last_layer(self.trunk(images), channels)

    def trunk(
        self, images: Float[Array, "n h w 3"] | UInt8[Array, "n h w 3"]
    ) -> Float[Array, "n fh fw f"]:
        """Applies all layers but the last, whose output is the same for all `channels`."""
        x = images if images.dtype == jnp.uint8 else images.astype(self.dtype)
        for layer in LAYERS[self.size][:-1]:
            x = self._apply(layer, x)
        return x

    def last_layer(
        self, features: Float[Array, "n fh fw f"], channels: slice | None = None
    ) -> Float[Array, "n oh ow c"]:
        """Applies the last layer to the result of `trunk`."""
        return getattr(self, LAYERS[self.size][-1].name)(features, channels)

    def _apply(self, layer: ConvLayer | AvgPoolLayer, x: Array) -> Array:
        if isinstance(layer, ConvLayer):
            return getattr(self, layer.name)(x)
        if not self.padding:
            return x  # the convolution before it includes the pooling
        return nn.avg_pool(
            x,
            window_shape=(2, 2),
            strides=(2, 2),
            padding=((layer.pad, layer.pad),) * 2,  # pyright: ignore[reportArgumentType]
        )


def takes_pixels(network: PatchDescriptionNetwork) -> bool:
    """Whether a network gets pixels as they are, and not normalized.

    In bfloat16 pixels are exact, and normalized images are not. Rounding these and the kernel of
    the first layer makes most of the difference between scores in bfloat16 and in float32.
    """
    return jnp.dtype(network.dtype) != jnp.float32 and not network.padding
