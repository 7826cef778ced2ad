"""A detector as an ONNX model: Algorithm 2 from uint8 images to scores and maps.

The graph is written operator by operator. Channels first, as the format has it, it needs no
transposition but that of the images.
"""

import numpy as np
import onnx
from jaxtyping import Float32, PyTree
from onnx import numpy_helper

from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import Calibration
from efficientad_jax.detection.map_normalization import MapQuantiles
from efficientad_jax.export.onnx_graph import Graph, apply, constant, halves, resize, to_model
from efficientad_jax.export.onnx_networks import add_autoencoder, add_pdn
from efficientad_jax.networks.pdn import LAYERS, STRIDE, output_size
from efficientad_jax.networks.preprocessing import IMAGENET_MEAN, IMAGENET_STD


def onnx_model(detector: Detector) -> onnx.ModelProto:
    """The detector in ONNX, weights and pre-processing inside, computed in float32.

    It takes 'images', uint8 RGB `[n, h, w, 3]` at the detector's input size, any number of them,
    and gives what `inference.Anomalies` has: 'scores' `[n]`, 'combined', 'local' and, with an
    autoencoder, 'global' maps `[n, h / 4, w / 4]`, or `[n, h, w]` where maps are upsampled first.
    """
    spec, calibration = detector.spec, detector.calibration
    image_size, size = spec.input_size, output_size(*spec.input_size, padding=spec.padding)
    shown = (image_size[0] // STRIDE, image_size[1] // STRIDE)
    graph = Graph([], {})
    maps = {}
    for name, (a, b) in _compared_features(graph, detector).items():
        difference = apply(graph, "Sub", [a, b], f"{name}/difference")
        square = apply(graph, "Mul", [difference] * 2, f"{name}/square")
        raw = apply(graph, "ReduceMean", [square], f"{name}/mean", axes=[1])
        if calibration.upsample_first:
            raw = resize(graph, raw, size, image_size)
        maps[name] = _normalized_map(graph, raw, _quantiles(calibration)[name], name)
    if calibration.upsample_first:
        size = shown = image_size
    combined = maps["local"]
    if "global" in maps:
        total = apply(graph, "Add", list(maps.values()), "combined/sum")
        half = constant(graph, "combined/half", np.array(0.5, np.float32))
        combined = apply(graph, "Mul", [total, half], "combined/mean")
    apply(graph, "ReduceMax", [combined], "scores", axes=[1, 2, 3], keepdims=0)
    margins = [(s - m) // 2 for s, m in zip(shown, size, strict=True)]
    pads = constant(graph, "margins", np.array([0, 0, *margins] * 2, np.int64))
    channel = constant(graph, "channel", np.array([1], np.int64))
    for name, of in {"combined": combined, **maps}.items():
        padded = apply(graph, "Pad", [of, pads], f"{name}/padded")
        apply(graph, "Squeeze", [padded, channel], name)
    return to_model(graph, image_size, {"scores": ()} | dict.fromkeys(["combined", *maps], shown))


def with_calibration(model: onnx.ModelProto, calibration: Calibration) -> onnx.ModelProto:
    """A copy of a model of `onnx_model` whose maps are normalised by other quantiles."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    values: dict[str, np.ndarray] = {}
    for name, quantiles in _quantiles(calibration).items():
        values |= _normalization(quantiles, name)
    for stored in changed.graph.initializer:
        if stored.name in values:
            stored.CopyFrom(numpy_helper.from_array(values[stored.name], stored.name))
    return changed


def _normalized_images(graph: Graph) -> str:
    """As `preprocessing` makes them, but channels first."""
    x = apply(graph, "Transpose", ["images"], "channels_first", perm=[0, 3, 1, 2])
    x = apply(graph, "Cast", [x], "pixels", to=onnx.TensorProto.FLOAT)
    mean = constant(graph, "mean", 255 * IMAGENET_MEAN.reshape(3, 1, 1))
    std = constant(graph, "std", 255 * IMAGENET_STD.reshape(3, 1, 1))
    centred = apply(graph, "Sub", [x, mean], "centred")
    return apply(graph, "Div", [centred, std], "normalized")


def _compared_features(graph: Graph, detector: Detector) -> dict[str, tuple[str, str]]:
    """What each map is the mean squared difference of."""
    spec, params = detector.spec, detector.params
    x, pdn = _normalized_images(graph), (spec.size, spec.padding)
    teacher = add_pdn(graph, x, params.teacher, *pdn, "teacher")
    if params.autoencoder is None:
        # The other half of the student's features is of no use.
        student = _first_features(params.student, spec.size, spec.out_channels)
        return {"local": (teacher, add_pdn(graph, x, student, *pdn, "student"))}
    student, imitation = halves(graph, add_pdn(graph, x, params.student, *pdn, "student"))
    size = output_size(*spec.input_size, padding=spec.padding)
    predicted = add_autoencoder(graph, x, params.autoencoder, spec.input_size, size, "autoencoder")
    return {"local": (teacher, student), "global": (predicted, imitation)}


def _first_features(params: PyTree, size: str, count: int) -> PyTree:
    """Parameters of a patch description network that computes its first features alone."""
    layers, last = params["params"], LAYERS[size][-1].name
    return {"params": layers | {last: {k: v[..., :count] for k, v in layers[last].items()}}}


def _normalized_map(graph: Graph, raw: str, quantiles: MapQuantiles, name: str) -> str:
    """As `map_normalization.normalize_map`."""
    constants = _normalization(quantiles, name)
    offset, scale = (constant(graph, key, value) for key, value in constants.items())
    return apply(
        graph, "Mul", [apply(graph, "Sub", [raw, offset], f"{name}/above"), scale], f"{name}/all"
    )


def _normalization(quantiles: MapQuantiles, name: str) -> dict[str, Float32[np.ndarray, ""]]:
    """The constants of `_normalized_map`: what is subtracted, and the factor then."""
    return {
        f"{name}/offset": np.array(quantiles.a, np.float32),
        f"{name}/scale": np.array(0.1 / (quantiles.b - quantiles.a), np.float32),
    }


def _quantiles(calibration: Calibration) -> dict[str, MapQuantiles]:
    found = {"local": calibration.local}
    return found if calibration.global_ is None else found | {"global": calibration.global_}
