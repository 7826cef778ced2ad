"""The networks as ONNX operators, layer by layer from the tables that the modules are made of."""

import numpy as np
from jaxtyping import PyTree

from efficientad_jax.export.onnx_graph import Graph, apply, convolution, resize
from efficientad_jax.networks import autoencoder, pdn


def add_pdn(graph: Graph, x: str, params: PyTree, size: str, padding: bool, name: str) -> str:
    """Adds a patch description network (see `pdn.PatchDescriptionNetwork`).

    Args:
      graph: gets its layers.
      x: name of the normalised images, channels first.
      params: of the module.
      size: 'small' or 'medium'.
      padding: whether layers are padded.
      name: what the layers' names begin with.

    Returns:
      The name of its features.
    """
    for layer in pdn.LAYERS[size]:
        match layer:
            case (layer_name, _, _, pad, relu):
                pad = pad if padding else 0
                x = _convolution(graph, x, params, f"{name}/{layer_name}", 1, pad, relu)
            case (layer_name, pad):
                x = apply(
                    graph,
                    "AveragePool",
                    [x],
                    f"{name}/{layer_name}",
                    kernel_shape=[2, 2],
                    strides=[2, 2],
                    pads=[pad if padding else 0] * 4,
                    count_include_pad=1,
                )
    return x


def add_autoencoder(
    graph: Graph,
    x: str,
    params: PyTree,
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    name: str,
) -> str:
    """Adds the autoencoder (see `autoencoder.Autoencoder`).

    Args:
      graph: gets its layers.
      x: name of the normalised images, channels first.
      params: of the module.
      image_size: height and width of the images.
      output_size: height and width of the teacher's features.
      name: what the layers' names begin with.

    Returns:
      The name of its features.
    """
    for layer in autoencoder.ENCODER:
        x = _convolution(
            graph, x, params, f"{name}/{layer.name}", layer.stride, layer.pad, layer.relu
        )
    size = (1, 1)
    for layer in autoencoder.DECODER:
        target = layer.size(image_size)
        x = resize(graph, x, size, target)
        x = _convolution(graph, x, params, f"{name}/{layer.name}", 1, 2, relu=True)
        size = (target[0] + 1, target[1] + 1)  # a 4x4 kernel, and 2 zeros on each side
    x = resize(graph, x, size, output_size)
    x = _convolution(graph, x, params, f"{name}/deconv7", 1, 1, relu=True)
    return _convolution(graph, x, params, f"{name}/deconv8", 1, 1, relu=False)


def _convolution(
    graph: Graph, x: str, params: PyTree, name: str, stride: int, padding: int, relu: bool
) -> str:
    """The layer of `params` that the last part of `name` says, and ReLU if wished."""
    layer = params["params"][name.rpartition("/")[2]]
    kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
    x = convolution(graph, x, kernel, bias, name, stride, padding)
    return apply(graph, "Relu", [x], f"{name}/relu") if relu else x
