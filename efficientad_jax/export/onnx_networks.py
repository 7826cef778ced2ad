"""Adds the networks to an ONNX graph, from the same tables of layers as the Flax modules."""

import numpy as np
from jaxtyping import PyTree

from efficientad_jax.export.onnx_graph import Graph, apply, convolution, resize
from efficientad_jax.networks import autoencoder, pdn


def add_pdn(graph: Graph, x: str, params: PyTree, *, size: str, padding: bool, name: str) -> str:
    """Adds a patch description network (see `pdn.PatchDescriptionNetwork`).

    Args:
      graph: the layers are added to it.
      x: name of the normalized images, channels first.
      params: of the module.
      size: 'small' or 'medium'.
      padding: whether layers are padded.
      name: prefix of the layers' names.

    Returns:
      The name of the features.
    """
    for layer in pdn.LAYERS[size]:
        pad = layer.pad if padding else 0
        match layer:
            case pdn.ConvLayer():
                x = _convolution(
                    graph, x, params, name=f"{name}/{layer.name}", padding=pad, relu=layer.relu
                )
            case pdn.AvgPoolLayer():
                x = apply(
                    graph,
                    "AveragePool",
                    [x],
                    name=f"{name}/{layer.name}",
                    kernel_shape=[2, 2],
                    strides=[2, 2],
                    pads=[pad] * 4,
                    count_include_pad=1,
                )
    return x


def add_autoencoder(
    graph: Graph,
    x: str,
    params: PyTree,
    *,
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    name: str,
) -> str:
    """Adds the autoencoder (see `autoencoder.Autoencoder`).

    Args:
      graph: the layers are added to it.
      x: name of the normalized images, channels first.
      params: of the module.
      image_size: height and width of the images.
      output_size: height and width of the teacher's features.
      name: prefix of the layers' names.

    Returns:
      The name of the features.
    """
    for layer in autoencoder.ENCODER:
        x = _convolution(
            graph,
            x,
            params,
            name=f"{name}/{layer.name}",
            stride=layer.stride,
            padding=layer.pad,
            relu=layer.relu,
        )
    size = (1, 1)
    for layer in autoencoder.DECODER:
        target = layer.size(image_size)
        x = resize(graph, x, source=size, target=target)
        x = _convolution(graph, x, params, name=f"{name}/{layer.name}", padding=2, relu=True)
        size = (target[0] + 1, target[1] + 1)  # a 4x4 kernel, with 2 zeros on each side
    x = resize(graph, x, source=size, target=output_size)
    x = _convolution(graph, x, params, name=f"{name}/deconv7", padding=1, relu=True)
    return _convolution(graph, x, params, name=f"{name}/deconv8", padding=1, relu=False)


def _convolution(
    graph: Graph,
    x: str,
    params: PyTree,
    *,
    name: str,
    padding: int,
    relu: bool,
    stride: int = 1,
) -> str:
    """Adds the convolution of `params` that the last part of `name` names, and optionally ReLU."""
    layer = params["params"][name.rpartition("/")[2]]
    kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
    x = convolution(graph, x, kernel, bias=bias, name=name, stride=stride, padding=padding)
    return apply(graph, "Relu", [x], name=f"{name}/relu") if relu else x
