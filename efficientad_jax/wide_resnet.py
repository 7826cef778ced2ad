"""WideResNet-101-2 as a backbone, as in the paper: feature maps of stride 8 and 16.

The architecture of torchvision's `wide_resnet101_2` as far as `layer3`, with weights from a state
dict of it. Batch normalisation, which only multiplies and adds when nothing trains, is folded into
the kernels.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float, PyTree, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load_file

from efficientad_jax.convolution import Method
from efficientad_jax.errors import InputError
from efficientad_jax.layers import Conv
from efficientad_jax.preprocessing import normalize_images, to_unit_range
from efficientad_jax.torch_weights import read_torch_checkpoint

_BATCH_NORM_EPSILON = 1e-5
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_STEM_CHANNELS = 64


class _Stage(NamedTuple):
    name: str
    blocks: int
    stride: int
    wide: int  # channels inside a block, twice a ResNet's
    out: int


# `layer4`, of stride 32, is not needed.
STAGES = (
    _Stage("layer1", 3, 1, 128, 256),
    _Stage("layer2", 4, 2, 256, 512),
    _Stage("layer3", 23, 2, 512, 1024),
)
_UNUSED = ("layer4.", "fc.")


def preprocess(images: UInt8[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """RGB in 0..255 to ImageNet's zero mean and unit variance."""
    return normalize_images(to_unit_range(images))


class WideResNet(nn.Module):
    """Feature maps of WideResNet-101-2; parameters from `load_wide_resnet`.

    Attributes:
      convolution: how convolutions are computed, see `efficientad_jax.convolution`.
    """

    convolution: Method = "auto"

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w 3"]
    ) -> tuple[Float[Array, "n h8 w8 512"], Float[Array, "n h16 w16 1024"]]:
        """Describes images that `preprocess` returned.

        Returns:
          The outputs of `layer2` (stride 8) and `layer3` (stride 16).
        """
        x = nn.relu(
            Conv(_STEM_CHANNELS, 7, 2, 3, convolution=self.convolution, name="stem")(images)
        )
        pads: Any = ((1, 1), (1, 1))
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=pads)
        outputs = []
        for stage in STAGES:
            for j in range(stage.blocks):
                stride = stage.stride if j == 0 else 1
                x = _Bottleneck(
                    stage.wide,
                    stage.out,
                    stride,
                    projects=j == 0,
                    convolution=self.convolution,
                    name=f"{stage.name}_{j}",
                )(x)
            outputs.append(x)
        return outputs[1], outputs[2]


class _Bottleneck(nn.Module):
    """Reduce, filter, expand, beside a skip that the first block of a stage projects."""

    wide: int
    out: int
    stride: int
    projects: bool
    convolution: Method

    @nn.compact
    def __call__(self, x: Array) -> Array:
        method = self.convolution
        y = nn.relu(Conv(self.wide, 1, convolution=method, name="conv1")(x))
        y = nn.relu(Conv(self.wide, 3, self.stride, 1, convolution=method, name="conv2")(y))
        y = Conv(self.out, 1, convolution=method, name="conv3")(y)
        if self.projects:
            x = Conv(self.out, 1, self.stride, convolution=method, name="downsample")(x)
        return nn.relu(x + y)


class _Folded(NamedTuple):
    """A convolution and the batch normalisation after it, by torchvision's names."""

    ours: tuple[str, ...]
    conv: str
    norm: str
    shape: tuple[int, int, int, int]  # of the kernel: out, in, height, width


def _layers() -> Iterator[_Folded]:
    yield _Folded(("stem",), "conv1", "bn1", (_STEM_CHANNELS, 3, 7, 7))
    channels = _STEM_CHANNELS
    for stage in STAGES:
        for j in range(stage.blocks):
            block, theirs = f"{stage.name}_{j}", f"{stage.name}.{j}"
            shapes = {
                "1": (stage.wide, channels, 1, 1),
                "2": (stage.wide, stage.wide, 3, 3),
                "3": (stage.out, stage.wide, 1, 1),
            }
            for n, shape in shapes.items():
                yield _Folded((block, f"conv{n}"), f"{theirs}.conv{n}", f"{theirs}.bn{n}", shape)
            if j == 0:
                skip = f"{theirs}.downsample"
                shape = (stage.out, channels, 1, 1)
                yield _Folded((block, "downsample"), f"{skip}.0", f"{skip}.1", shape)
            channels = stage.out


def convert_wide_resnet(state: Mapping[str, np.ndarray]) -> PyTree:
    """Flax parameters from a state dict of torchvision's `wide_resnet101_2`.

    Args:
      state: arrays by torchvision's names; those of `layer4` and `fc` may be missing.

    Raises:
      InputError: an array is missing, has another shape, or is none of this network's.
    """
    params: dict[tuple[str, ...], Array] = {}
    known = set()
    for layer in _layers():
        kernel = _array(state, f"{layer.conv}.weight", layer.shape)
        norm = [f"{layer.norm}.{part}" for part in _BATCH_NORM]
        scale, shift, mean, variance = (_array(state, name, layer.shape[:1]) for name in norm)
        # In float64: a hundred roundings one after the other would be seen in the features.
        scale = scale / np.sqrt(variance + _BATCH_NORM_EPSILON)
        kernel = (kernel * scale[:, None, None, None]).transpose(2, 3, 1, 0)
        params[(*layer.ours, "kernel")] = jnp.asarray(kernel, jnp.float32)
        params[(*layer.ours, "bias")] = jnp.asarray(shift - mean * scale, jnp.float32)
        known |= {f"{layer.conv}.weight", *norm, f"{layer.norm}.num_batches_tracked"}
    for name in state:
        if name not in known and not name.startswith(_UNUSED):
            raise InputError(
                f"{name} of shape {state[name].shape} not expected in WideResNet-101-2"
            )
    return {"params": unflatten_dict(params)}


def _array(
    state: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> Float[np.ndarray, "..."]:
    if name not in state:
        raise InputError(f"{name} missing, expected shape {shape} in WideResNet-101-2")
    if state[name].shape != shape:
        raise InputError(
            f"{name} has shape {state[name].shape}, expected {shape} in WideResNet-101-2"
        )
    return state[name].astype(np.float64)


def load_wide_resnet(path: str) -> PyTree:
    """Weights from a file: torchvision's state dict of `wide_resnet101_2`.

    Args:
      path: a `.safetensors` file, or one that `torch.save` wrote, of which no code is run.

    Raises:
      InputError: there is no file, it cannot be read, or is of another network.
    """
    if not path:
        raise InputError(
            "config.backbone_weights is empty: give the file of torchvision's wide_resnet101_2, "
            ".pth or .safetensors"
        )
    if path.endswith(".safetensors"):
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"config.backbone_weights = {path!r}: cannot be read as safetensors ({error})"
            ) from error
    else:
        state = read_torch_checkpoint(Path(path))
    try:
        return convert_wide_resnet(state)
    except InputError as error:
        raise InputError(f"config.backbone_weights = {path!r}: {error}") from error
