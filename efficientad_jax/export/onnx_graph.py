"""Builds an ONNX graph operator by operator.

Values have descriptive names, so that a reader can follow the file: 'teacher/conv1' is the output
of that layer, and 'teacher/conv1/kernel' are its weights.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx
from jaxtyping import Float
from onnx import helper, numpy_helper

from efficientad_jax.networks.resize import bilinear_matrix

# Old enough for all common runtimes, and new enough for all operators of the graph.
OPSET = 17
_IR_VERSION = 8


class Graph(NamedTuple):
    """A graph under construction: nodes in the order of computation, and constants by name."""

    nodes: list[onnx.NodeProto]
    constants: dict[str, np.ndarray]


def apply(graph: Graph, operator: str, inputs: list[str], *, name: str, **attributes: Any) -> str:
    """Adds an operator with one output; node and output are named `name`, which is returned."""
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
    *,
    bias: Float[np.ndarray, " k"],
    name: str,
    stride: int = 1,
    padding: int = 0,
) -> str:
    """Adds a convolution of channels-first values; `kernel` has the layout of Flax."""
    weights = [
        constant(graph, f"{name}/kernel", np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))),
        constant(graph, f"{name}/bias", bias),
    ]
    strides, pads = [stride] * 2, [padding] * 4
    size = list(kernel.shape[:2])
    return apply(
        graph,
        "Conv",
        [x, *weights],
        name=name,
        kernel_shape=size,
        strides=strides,
        pads=pads,
    )


def resize(graph: Graph, x: str, *, source: tuple[int, int], target: tuple[int, int]) -> str:
    """Resizes channels-first values with the two matrices of `resize.resize_bilinear`."""
    if source == target:
        return x
    rows = constant(graph, f"{x}/rows", bilinear_matrix(source[0], target[0]))
    columns = bilinear_matrix(source[1], target[1]).T
    columns = constant(graph, f"{x}/columns", np.ascontiguousarray(columns))
    x_rows = apply(graph, "MatMul", [rows, x], name=f"{x}/taller")
    return apply(graph, "MatMul", [x_rows, columns], name=f"{x}/resized")


def halves(graph: Graph, x: str) -> tuple[str, str]:
    """Splits the channels into two halves."""
    first, second = f"{x}/first", f"{x}/second"
    graph.nodes.append(helper.make_node("Split", [x], [first, second], f"{x}/halves", axis=1))
    return first, second


def top_k(graph: Graph, x: str, k: int, *, name: str) -> str:
    """Selects the `k` largest values along the last dimension."""
    count = constant(graph, f"{name}/count", np.array([k], np.int64))
    outputs = [name, f"{name}/places"]
    graph.nodes.append(helper.make_node("TopK", [x, count], outputs, name))
    return name


def to_model(
    graph: Graph, image_size: tuple[int, int], outputs: dict[str, tuple[int, ...]]
) -> onnx.ModelProto:
    """Converts a graph to a model and checks it.

    Args:
      graph: its input is 'images', uint8 `[n, h, w, 3]`.
      image_size: height and width of the images; their number `n` is not fixed.
      outputs: names of float32 outputs, with their shapes without the first dimension `n`.
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
