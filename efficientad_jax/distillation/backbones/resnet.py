"""ResNet as a backbone, including the paper's WideResNet-101-2: feature maps of stride 8 and 16.

The architectures of torchvision up to `layer3`, with weights from a state dict of torchvision or
from the file of ResNet-18 in this package. Batch normalization is folded into the kernels, because
the backbone is not trained.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load_file

from efficientad_jax.convolution import ConvolutionMethod
from efficientad_jax.errors import InputError
from efficientad_jax.networks.layers import Conv
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.storage.torch_checkpoint import read_torch_checkpoint

Architecture = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50", "wide_resnet101"
]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
TITLES: dict[str, str] = {
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "wide_resnet50": "WideResNet-50-2",
    "wide_resnet101": "WideResNet-101-2",
}
# The ResNet whose weights are in this package.
PACKAGED: Architecture = "resnet18"

_BATCH_NORM_EPSILON = 1e-5
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_STEM_CHANNELS = 64
# torchvision's last stage, which has stride 32, and its classifier.
_UNUSED = ("layer4.", "fc.")
# ImageNet's mean of RGB in 0..255. The packaged ResNet-18 expects images without this mean, but not
# divided by a standard deviation.
_PACKAGED_MEAN = (123.152, 115.903, 103.063)


class _Stage(NamedTuple):
    name: str
    blocks: int
    stride: int
    inner: int  # channels of the 3x3 convolutions
    out: int


# Number of blocks of layer1, layer2 and layer3; channels of the 3x3 convolutions relative to 64,
# 128 and 256; channels of a block's output relative to the same. Blocks that do not expand are
# basic blocks.
_VARIANTS: dict[Architecture, tuple[tuple[int, int, int], int, int]] = {
    "resnet18": ((2, 2, 2), 1, 1),
    "resnet34": ((3, 4, 6), 1, 1),
    "resnet50": ((3, 4, 6), 1, 4),
    "resnet101": ((3, 4, 23), 1, 4),
    "wide_resnet50": ((3, 4, 6), 2, 4),
    "wide_resnet101": ((3, 4, 23), 2, 4),
}


def stages(architecture: Architecture) -> tuple[_Stage, ...]:
    """The stages up to stride 16: `layer1` to `layer3`."""
    blocks, width, expansion = _VARIANTS[architecture]
    return tuple(
        _Stage(
            f"layer{i + 1}", blocks[i], 1 if i == 0 else 2, 64 * 2**i * width, 64 * 2**i * expansion
        )
        for i in range(3)
    )


def has_bottlenecks(architecture: Architecture) -> bool:
    """Whether a block has 1x1, 3x3 and 1x1 convolutions, or two 3x3 convolutions."""
    return _VARIANTS[architecture][2] > 1


def preprocess(images: UInt8[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """RGB in 0..255 to ImageNet's zero mean and unit variance, as torchvision's weights expect."""
    return normalize_images(to_unit_range(images))


def preprocess_packaged(images: UInt8[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Subtracts the mean from RGB in 0..255, as the packaged ResNet-18 expects."""
    return images.astype(jnp.float32) - jnp.asarray(_PACKAGED_MEAN)


class ResNet(nn.Module):
    """Feature maps of a ResNet; parameters from `load_resnet` or `load_packaged_resnet18`.

    Attributes:
      architecture: one of torchvision's.
      convolution: how convolutions are computed, see `efficientad_jax.convolution`.
      dtype: of the computation; parameters are float32.
    """

    architecture: Architecture
    convolution: ConvolutionMethod = "auto"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w 3"]
    ) -> tuple[Float[Array, "n h8 w8 c"], Float[Array, "n h16 w16 d"]]:
        """Computes the maps of preprocessed images, height and width multiples of 16.

        Returns:
          The outputs of `layer2` (stride 8) and `layer3` (stride 16).
        """
        conv = partial(Conv, convolution=self.convolution, dtype=self.dtype)
        x = nn.relu(conv(_STEM_CHANNELS, 7, 2, 3, name="stem")(images))
        pads: Any = ((1, 1), (1, 1))
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=pads)
        block = _Bottleneck if has_bottlenecks(self.architecture) else _BasicBlock
        outputs = []
        for stage in stages(self.architecture):
            for j in range(stage.blocks):
                stride = stage.stride if j == 0 else 1
                x = block(stage.inner, stage.out, stride, conv, name=f"{stage.name}_{j}")(x)
            outputs.append(x)
        return outputs[1], outputs[2]


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection."""

    inner: int
    out: int
    stride: int
    conv: Callable[..., Conv]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = self.conv
        y = nn.relu(conv(self.inner, 3, self.stride, 1, name="conv1")(x))
        y = conv(self.out, 3, 1, 1, name="conv2")(y)
        return nn.relu(_skip(x, y, self.stride, conv=conv) + y)


class _Bottleneck(nn.Module):
    """Reduce, filter, expand, and a skip connection."""

    inner: int
    out: int
    stride: int
    conv: Callable[..., Conv]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = self.conv
        y = nn.relu(conv(self.inner, 1, name="conv1")(x))
        y = nn.relu(conv(self.inner, 3, self.stride, 1, name="conv2")(y))
        y = conv(self.out, 1, name="conv3")(y)
        return nn.relu(_skip(x, y, self.stride, conv=conv) + y)


def _skip(x: Array, y: Array, stride: int, *, conv: Callable[..., Conv]) -> Array:
    """The block's input, projected if the block changes its shape."""
    if x.shape == y.shape:
        return x
    return conv(y.shape[-1], 1, stride, name="downsample")(x)


class _Layer(NamedTuple):
    """The names in torchvision of a convolution and of the batch normalization after it."""

    path: tuple[str, ...]  # in the parameters of `ResNet`
    conv: str
    norm: str
    shape: tuple[int, int, int, int]  # of the kernel: out, in, height, width


def _layers(architecture: Architecture) -> Iterator[_Layer]:
    yield _Layer(("stem",), "conv1", "bn1", (_STEM_CHANNELS, 3, 7, 7))
    channels = _STEM_CHANNELS
    for stage in stages(architecture):
        for j in range(stage.blocks):
            block, prefix = f"{stage.name}_{j}", f"{stage.name}.{j}"
            if has_bottlenecks(architecture):
                shapes = [
                    (stage.inner, channels, 1, 1),
                    (stage.inner, stage.inner, 3, 3),
                    (stage.out, stage.inner, 1, 1),
                ]
            else:
                shapes = [(stage.inner, channels, 3, 3), (stage.out, stage.inner, 3, 3)]
            for n, shape in enumerate(shapes, 1):
                yield _Layer((block, f"conv{n}"), f"{prefix}.conv{n}", f"{prefix}.bn{n}", shape)
            if j == 0 and (stage.stride > 1 or channels != stage.out):
                skip = f"{prefix}.downsample"
                shape = (stage.out, channels, 1, 1)
                yield _Layer((block, "downsample"), f"{skip}.0", f"{skip}.1", shape)
            channels = stage.out


def convert_resnet(state: Mapping[str, np.ndarray], architecture: Architecture) -> PyTree:
    """Flax parameters from a state dict of torchvision.

    Args:
      state: arrays by torchvision's names; those of `layer4` and `fc` may be missing.
      architecture: which network it is.

    Raises:
      InputError: an array is missing, has another shape, or does not belong to this network.
    """
    params: dict[tuple[str, ...], Array] = {}
    known = set()
    for layer in _layers(architecture):
        kernel = _array(state, f"{layer.conv}.weight", layer.shape, architecture=architecture)
        norm = [f"{layer.norm}.{part}" for part in _BATCH_NORM]
        scale, shift, mean, variance = (
            _array(state, name, layer.shape[:1], architecture=architecture) for name in norm
        )
        # In float64, because the rounding errors of a hundred layers would show in the features.
        scale = scale / np.sqrt(variance + _BATCH_NORM_EPSILON)
        params |= _convolution(layer, kernel * scale[:, None, None, None], shift - mean * scale)
        known |= {f"{layer.conv}.weight", *norm, f"{layer.norm}.num_batches_tracked"}
    for name in state:
        if name not in known and not name.startswith(_UNUSED):
            raise InputError(
                f"{name} of shape {state[name].shape} not expected in {TITLES[architecture]}"
            )
    return {"params": unflatten_dict(params)}


def _convolution(
    layer: _Layer, kernel: Float[np.ndarray, "k c kh kw"], bias: Float[np.ndarray, " k"]
) -> dict[tuple[str, ...], Array]:
    return {
        (*layer.path, "kernel"): jnp.asarray(kernel.transpose(2, 3, 1, 0), jnp.float32),
        (*layer.path, "bias"): jnp.asarray(bias, jnp.float32),
    }


def _array(
    state: Mapping[str, np.ndarray],
    name: str,
    shape: tuple[int, ...],
    *,
    architecture: Architecture,
) -> Float[np.ndarray, "..."]:
    if name not in state:
        raise InputError(f"{name} missing, expected shape {shape} in {TITLES[architecture]}")
    if state[name].shape != shape:
        raise InputError(
            f"{name} has shape {state[name].shape}, expected {shape} in {TITLES[architecture]}"
        )
    return state[name].astype(np.float64)


def load_resnet(path: str, architecture: Architecture) -> PyTree:
    """Loads weights from a file: a state dict of torchvision.

    Args:
      path: a `.safetensors` file, or one that `torch.save` wrote; no code in it is run.
      architecture: which network it is.

    Raises:
      InputError: there is no file, it cannot be read, or it belongs to another network.
    """
    if not path:
        raise InputError(
            f"config.backbone_weights is empty: give the file of torchvision's {architecture}, "
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
        return convert_resnet(state, architecture)
    except InputError as error:
        raise InputError(f"config.backbone_weights = {path!r}: {error}") from error


def packaged_resnet18() -> Path:
    """The file of ResNet-18 in this package; `README.md` next to it has source and license."""
    return Path(
        str(resources.files("efficientad_jax.distillation.backbones") / "resnet18.safetensors")
    )


def load_packaged_resnet18() -> PyTree:
    """Loads the ResNet-18 of this package, for images from `preprocess_packaged`.

    Its batch normalization is already folded: each convolution has a `weight` and a `bias`.
    """
    state = load_file(packaged_resnet18())
    params: dict[tuple[str, ...], Array] = {}
    for layer in _layers(PACKAGED):
        name = layer.conv.replace("downsample.0", "downsample")
        params |= _convolution(layer, state[f"{name}.weight"], state[f"{name}.bias"])
    return {"params": unflatten_dict(params)}
