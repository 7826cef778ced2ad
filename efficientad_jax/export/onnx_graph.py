"""An ONNX graph while it is made: what the networks and the maps are written with.

Values are named by what they are, so that the file can be read: 'teacher/conv1', and its weights
'teacher/conv1/kernel'.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx
from jaxtyping import Float
from onnx import helper, numpy_helper

from efficientad_jax.networks.resize import bilinear_matrix

# Old enough for the runtimes in use: everything the graph needs is in it.
OPSET = 17
_IR_VERSION = 8


class Graph(NamedTuple):
    """Nodes in the order of computation, and constants by name."""

    nodes: list[onnx.NodeProto]
    constants: dict[str, np.ndarray]


def apply(graph: Graph, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
    """Adds an operator whose node and only output are called `name`, which is returned."""
    graph.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
    return name


def constant(graph: Graph, name: str, value: np.ndarray) -> str:
    """Adds a constant and returns its name."""
    graph.constants[name] = value
    return name


def convolution(
    graph: Graph,
    x: str,
    kernel: Float[np.ndarray, "kh kw c k"],
    bias: Float[np.ndarray, " k"],
    name: str,
    stride: int = 1,
    padding: int = 0,
) -> str:
    """Adds a convolution of channels-first values; `kernel` is as Flax has it."""
    weights = [
        constant(graph, f"{name}/kernel", np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))),
        constant(graph, f"{name}/bias", bias),
    ]
    strides, pads = [stride] * 2, [padding] * 4
    size = list(kernel.shape[:2])
    return apply(graph, "Conv", [x, *weights], name, kernel_shape=size, strides=strides, pads=pads)


def resize(graph: Graph, x: str, source: tuple[int, int], target: tuple[int, int]) -> str:
    """Resizes channels-first values as `resize.resize_bilinear` does, by its two matrices."""
    if source == target:
        return x
    rows = constant(graph, f"{x}/rows", bilinear_matrix(source[0], target[0]))
    columns = bilinear_matrix(source[1], target[1]).T
    columns = constant(graph, f"{x}/columns", np.ascontiguousarray(columns))
    x_rows = apply(graph, "MatMul", [rows, x], f"{x}/taller")
    return apply(graph, "MatMul", [x_rows, columns], f"{x}/resized")


def halves(graph: Graph, x: str) -> tuple[str, str]:
    """The first half of the channels and the second."""
    first, second = f"{x}/first", f"{x}/second"
    graph.nodes.append(helper.make_node("Split", [x], [first, second], f"{x}/halves", axis=1))
    return first, second


def to_model(
    graph: Graph, image_size: tuple[int, int], outputs: dict[str, tuple[int, ...]]
) -> onnx.ModelProto:
    """The checked model of a graph.

    Args:
      graph: takes 'images', uint8 `[n, h, w, 3]`.
      image_size: their height and width; `n` is any number.
      outputs: names of float32 values with their shapes after `n`.
    """
    images = helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["n", *image_size, 3])
    results = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", *shape])
        for name, shape in outputs.items()
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "EfficientAD", [images], results, constants),
        producer_name="efficientad_jax",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model
