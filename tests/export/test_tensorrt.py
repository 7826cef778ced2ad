"""Exported programs have only operators, types and shapes that TensorRT supports.

The operators and restrictions are those that TensorRT 8.5 documents for its ONNX parser, up to
opset 17: github.com/onnx/onnx-tensorrt, docs/operators.md. Later versions support more.
"""

import os
import stat
import subprocess
from dataclasses import replace

import numpy as np
import onnx
import pytest

from efficientad_jax.data.framing import Framing
from efficientad_jax.detection.puad.distance import PuadStatistics
from efficientad_jax.detection.puad.standardization import PuadScale
from efficientad_jax.export.onnx_graph import OPSET
from efficientad_jax.export.onnx_model import onnx_model
from tests.helpers.command import REPOSITORY
from tests.helpers.detectors import SPEC, random_detector

SCRIPT = REPOSITORY / "docs/examples/tensorrt/build_engine.sh"

# Those of the list that the exported programs have; and which of their inputs have to be constants.
SUPPORTED: dict[str, tuple[int, ...]] = {
    "Add": (),
    "AveragePool": (),
    "Cast": (),
    "Conv": (1, 2),
    "Div": (),
    "Flatten": (),
    "MatMul": (),
    "Mul": (),
    "Pad": (1,),
    "ReduceL2": (),
    "ReduceMax": (),
    "ReduceMean": (),
    "ReduceSum": (1,),
    "Relu": (),
    "Split": (),
    "Squeeze": (1,),
    "Sub": (),
    "TopK": (1,),
    "Transpose": (),
    "Where": (),
}
LARGEST_K = 3840  # of TopK
TYPES = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL}

SMALL = SPEC._replace(out_channels=4)
MASK = np.zeros((100, 100), bool)
MASK[:30] = True


def models():
    """Programs that together have every operator that an exported program can have."""
    other = random_detector(SMALL._replace(autoencoder=True), score_values=20, upsample_first=True)
    statistics = PuadStatistics(np.zeros(4, np.float32), np.eye(4, dtype=np.float32))
    with_all = replace(
        other,
        framing=Framing(ignored=MASK),
        params=other.params._replace(puad=statistics),
        calibration=other.calibration._replace(puad=PuadScale(1.0, 0.5)),
    )
    return {"plain": random_detector(SMALL), "all": with_all}


@pytest.fixture(scope="module")
def graphs():
    return {name: onnx_model(detector) for name, detector in models().items()}


def test_every_operator_is_supported(graphs):
    used = set()
    for name, model in graphs.items():
        (opset,) = model.opset_import
        assert (opset.domain, opset.version) == ("", OPSET) == ("", 17)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        assert {tensor.data_type for tensor in constants.values()} <= TYPES, name
        for node in model.graph.node:
            assert node.domain == ""
            assert node.op_type in SUPPORTED, (name, node.name)
            for place in SUPPORTED[node.op_type]:
                assert node.input[place] in constants, (name, node.name)
            used.add(node.op_type)
        for node in model.graph.node:
            if node.op_type == "TopK":
                assert onnx.numpy_helper.to_array(constants[node.input[1]]) <= LARGEST_K
            if node.op_type == "Pad":  # with zeros
                assert not node.attribute
                assert len(node.input) == 2
    assert used == SUPPORTED.keys()


def test_only_the_number_of_images_is_not_fixed(graphs):
    for model in graphs.values():
        (images,) = model.graph.input
        assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        for value in (images, *model.graph.output):
            first, *others = value.type.tensor_type.shape.dim
            assert first.dim_param == "n"
            assert all(size.dim_value > 0 for size in others)
        # uint8 is a type of inputs only, and goes into a cast.
        assert [n.op_type for n in model.graph.node if "images" in n.input] == ["Cast"]


def test_the_script_gives_trtexec_shapes_that_the_program_takes(graphs, tmp_path):
    stand_in = tmp_path / "trtexec"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    (images,) = graphs["plain"].graph.input
    _, height, width, _ = (size.dim_value for size in images.type.tensor_type.shape.dim)
    path = f"{tmp_path}:{os.environ['PATH']}"
    printed = subprocess.run(
        ["sh", SCRIPT, "a/mine.onnx", str(height), str(width)],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    flags = dict(line.lstrip("-").partition("=")[::2] for line in printed.splitlines())
    assert flags.pop("onnx") == "a/mine.onnx"
    assert flags.pop("saveEngine") == "a/mine.engine"
    assert flags.pop("noTF32") == ""
    shapes = {name: value.split(":") for name, value in flags.items()}
    assert shapes.keys() == {"minShapes", "optShapes", "maxShapes"}
    counts = []
    for name, sizes in shapes.values():
        assert name == images.name
        count, *rest = map(int, sizes.split("x"))
        assert rest == [height, width, 3]
        counts.append(count)
    assert counts == sorted(counts)
    assert counts[0] == 1
