"""The patch description network, S and M (paper, Section 3.1; layers: its supplement)."""

from itertools import pairwise
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from efficientad_jax.config import Size as Size
from efficientad_jax.convolution import Method
from efficientad_jax.networks.layers import Conv

# An output of the network sees this many pixels on a side, and the next one 4 pixels further.
RECEPTIVE_FIELD = 33
STRIDE = 4


class _Conv(NamedTuple):
    name: str
    kernel: int
    out: int | None  # None: the module's `out_channels`
    pad: int
    relu: bool


class _AvgPool(NamedTuple):
    """2x2, stride 2; padded zeros count in the mean."""

    name: str
    pad: int


# name, kernel, out, pad, ReLU. The pads apply where `padding` is on; otherwise they are all 0.
LAYERS: dict[str, tuple[_Conv | _AvgPool, ...]] = {
    "small": (
        _Conv("conv1", 4, 128, 3, True),
        _AvgPool("avgpool1", 1),
        _Conv("conv2", 4, 256, 3, True),
        _AvgPool("avgpool2", 1),
        _Conv("conv3", 3, 256, 1, True),
        _Conv("conv4", 4, None, 0, False),
    ),
    "medium": (
        _Conv("conv1", 4, 256, 3, True),
        _AvgPool("avgpool1", 1),
        _Conv("conv2", 4, 512, 3, True),
        _AvgPool("avgpool2", 1),
        _Conv("conv3", 1, 512, 0, True),
        _Conv("conv4", 3, 512, 1, True),
        _Conv("conv5", 4, None, 0, True),
        _Conv("conv6", 1, None, 0, False),
    ),
}


def output_size(height: int, width: int, padding: bool = False) -> tuple[int, int]:
    """Height and width of a PDN's output for an image of this size (multiples of 4).

    256x256 gives 56x56, or 64x64 with padding.
    """
    margin = 0 if padding else 8
    return height // STRIDE - margin, width // STRIDE - margin


class PatchDescriptionNetwork(nn.Module):
    """Describes every 33x33 patch of an image by a vector of `out_channels` features.

    The teacher has 384 channels, the student 768: the first half imitates the teacher, the
    second the autoencoder.

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
    convolution: Method = "auto"

    def setup(self) -> None:
        """Makes a submodule of each convolution, under the table's name."""
        if self.size not in LAYERS:
            raise ValueError(f"PDN size {self.size!r}: expected one of {', '.join(LAYERS)}")
        for layer, following in pairwise((*LAYERS[self.size], None)):
            if isinstance(layer, _Conv):
                pad = layer.pad if self.padding else 0
                conv = Conv(
                    features=self.out_channels if layer.out is None else layer.out,
                    kernel_size=layer.kernel,
                    padding=pad,
                    relu=layer.relu,
                    pool=isinstance(following, _AvgPool) and not self.padding,
                    dtype=self.dtype,
                    convolution=self.convolution,
                )
                setattr(self, layer.name, conv)

    def __call__(
        self, images: Float[Array, "n h w 3"], channels: slice | None = None
    ) -> Float[Array, "n oh ow c"]:
        """Computes the features of every patch.

        Args:
          images: float32, ImageNet-normalised RGB, at least 33 pixels a side without padding.
          channels: output channels to compute, all of them unless given. Only the last layer is
            cut short, so `network(x, channels=s)` equals `network(x)[..., s]`.

        Returns:
          `[n, h // 4 - 8, w // 4 - 8, out_channels]`, or `[n, h // 4, w // 4, out_channels]` with
          padding, for sides that are multiples of 4; of the dtype `dtype`.
        """
        return self.describe(self.trunk(images), channels)

    def trunk(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n fh fw f"]:
        """All layers but the last: what two calls with different `channels` have in common."""
        x = images.astype(self.dtype)
        for layer in LAYERS[self.size][:-1]:
            x = self._apply(layer, x)
        return x

    def describe(
        self, features: Float[Array, "n fh fw f"], channels: slice | None = None
    ) -> Float[Array, "n oh ow c"]:
        """The last layer, on what `trunk` returned."""
        return getattr(self, LAYERS[self.size][-1].name)(features, channels)

    def _apply(self, layer: _Conv | _AvgPool, x: Array) -> Array:
        if isinstance(layer, _Conv):
            return getattr(self, layer.name)(x)
        if not self.padding:
            return x  # the convolution before it has averaged already
        return nn.avg_pool(
            x,
            window_shape=(2, 2),
            strides=(2, 2),
            padding=((layer.pad, layer.pad),) * 2,  # pyright: ignore[reportArgumentType]
        )
