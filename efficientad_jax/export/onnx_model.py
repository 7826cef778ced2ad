"""Converts a detector to an ONNX model: Algorithm 2 from uint8 images to scores and maps.

The graph is channels first, as usual in ONNX: only the images need a transposition.
"""

from functools import partial

import numpy as np
import onnx
from jaxtyping import Float32, PyTree
from onnx import helper, numpy_helper

from efficientad_jax.data.framing import FILL
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import Calibration
from efficientad_jax.detection.map_normalization import MapQuantiles
from efficientad_jax.export.onnx_graph import (
    Graph,
    apply,
    constant,
    halves,
    resize,
    to_model,
    top_k,
)
from efficientad_jax.export.onnx_networks import add_autoencoder, add_pdn
from efficientad_jax.export.onnx_puad import add_distance
from efficientad_jax.export.properties import as_texts, check_exportable, export_properties
from efficientad_jax.networks.ignored import Ignored
from efficientad_jax.networks.pdn import LAYERS, STRIDE, output_size
from efficientad_jax.networks.preprocessing import IMAGENET_MEAN, IMAGENET_STD


def onnx_model(detector: Detector) -> onnx.ModelProto:
    """Converts a detector to ONNX, with weights and preprocessing inside, computed in float32.

    The input is 'images', any number of uint8 RGB images `[n, h, w, 3]` at the detector's input
    size. The outputs are those of `inference.Anomalies`: 'scores' `[n]`, and the maps 'combined',
    'local' and, with an autoencoder, 'global', all `[n, h / 4, w / 4]`, or `[n, h, w]` if the
    detector upsamples maps first. An ignore mask is in the graph; the caller cuts out a region of
    interest. `metadata_props` has the `properties` of the detector.
    """
    check_exportable(detector)
    spec, calibration, ignored = detector.spec, detector.calibration, detector.ignored_in()
    image_size, size = spec.input_size, output_size(*spec.input_size, padding=spec.padding)
    map_size = (image_size[0] // STRIDE, image_size[1] // STRIDE)
    graph = Graph([], {})
    compared, maps = _compared_features(graph, detector), {}
    for name, (a, b) in compared.items():
        difference = apply(graph, "Sub", [a, b], name=f"{name}/difference")
        square = apply(graph, "Mul", [difference] * 2, name=f"{name}/square")
        raw = apply(graph, "ReduceMean", [square], name=f"{name}/mean", axes=[1])
        if calibration.upsample_first:
            raw = resize(graph, raw, source=size, target=image_size)
        maps[name] = _normalized_map(graph, raw, _quantiles(calibration)[name], name=name)
    if calibration.upsample_first:
        size = map_size = image_size
    combined = maps["local"]
    if "global" in maps:
        total = apply(graph, "Add", list(maps.values()), name="combined/sum")
        half = constant(graph, "combined/half", np.array(0.5, np.float32))
        combined = apply(graph, "Mul", [total, half], name="combined/mean")
    scores = "scores" if calibration.puad is None else "scores/of_maps"
    if ignored is None:
        values = min(calibration.score_values, size[0] * size[1])
        _add_scores(graph, combined, values, name=scores)
    else:
        maps, combined = _leave_out(
            graph, maps, combined, ignored=ignored, values=calibration.score_values, scores=scores
        )
    if calibration.puad is not None:
        _, student = compared["local"]
        add_distance(graph, detector, scores, features=student, name="scores")
    margins = [(s - m) // 2 for s, m in zip(map_size, size, strict=True)]
    pads = constant(graph, "margins", np.array([0, 0, *margins] * 2, np.int64))
    channel = constant(graph, "channel", np.array([1], np.int64))
    for name, unpadded in {"combined": combined, **maps}.items():
        padded = apply(graph, "Pad", [unpadded, pads], name=f"{name}/padded")
        apply(graph, "Squeeze", [padded, channel], name=name)
    outputs = {"scores": ()} | dict.fromkeys(["combined", *maps], map_size)
    model = to_model(graph, image_size, outputs)
    properties = export_properties(detector, "float32", detector.threshold)
    helper.set_model_props(model, as_texts(properties))
    return model


def with_calibration(model: onnx.ModelProto, calibration: Calibration) -> onnx.ModelProto:
    """Copies a model of `onnx_model` and replaces the quantiles of its normalization."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    values: dict[str, np.ndarray] = {}
    for name, quantiles in _quantiles(calibration).items():
        values |= _normalization(quantiles, name)
    for stored in changed.graph.initializer:
        if stored.name in values:
            stored.CopyFrom(numpy_helper.from_array(values[stored.name], stored.name))
    return changed


def _normalized_images(graph: Graph, ignored: Ignored | None) -> str:
    """Adds the normalization of `preprocessing`; the result is channels first."""
    # TensorRT accepts uint8 inputs only into a cast.
    x = apply(graph, "Cast", ["images"], name="pixels", to=onnx.TensorProto.FLOAT)
    if ignored is not None:
        pixels = constant(graph, "ignored", np.asarray(ignored.pixels)[..., None])
        fill = constant(graph, "fill", FILL.astype(np.float32))
        x = apply(graph, "Where", [pixels, fill, x], name="filled")
    x = apply(graph, "Transpose", [x], name="channels_first", perm=[0, 3, 1, 2])
    mean = constant(graph, "mean", 255 * IMAGENET_MEAN.reshape(3, 1, 1))
    std = constant(graph, "std", 255 * IMAGENET_STD.reshape(3, 1, 1))
    centered = apply(graph, "Sub", [x, mean], name="centered")
    return apply(graph, "Div", [centered, std], name="normalized")


def _compared_features(graph: Graph, detector: Detector) -> dict[str, tuple[str, str]]:
    """Adds the networks; returns for each map the two features whose difference it measures."""
    spec, params = detector.spec, detector.params
    x = _normalized_images(graph, detector.ignored_in())
    add = partial(add_pdn, graph, x, size=spec.size, padding=spec.padding)
    teacher = add(params.teacher, name="teacher")
    if params.autoencoder is None:
        # The second half of the student's features is not needed.
        student = _first_features(params.student, spec.size, spec.out_channels)
        return {"local": (teacher, add(student, name="student"))}
    student, imitation = halves(graph, add(params.student, name="student"))
    size = output_size(*spec.input_size, padding=spec.padding)
    predicted = add_autoencoder(
        graph,
        x,
        params.autoencoder,
        image_size=spec.input_size,
        output_size=size,
        name="autoencoder",
    )
    return {"local": (teacher, student), "global": (predicted, imitation)}


def _first_features(params: PyTree, size: str, count: int) -> PyTree:
    """Restricts the parameters of a patch description network to its first `count` features."""
    layers, last = params["params"], LAYERS[size][-1].name
    return {"params": layers | {last: {k: v[..., :count] for k, v in layers[last].items()}}}


def _normalized_map(graph: Graph, raw: str, quantiles: MapQuantiles, *, name: str) -> str:
    """Adds the normalization of `map_normalization.normalize_map`."""
    constants = _normalization(quantiles, name)
    offset, scale = (constant(graph, key, value) for key, value in constants.items())
    above = apply(graph, "Sub", [raw, offset], name=f"{name}/above")
    return apply(graph, "Mul", [above, scale], name=f"{name}/all")


def _add_scores(graph: Graph, combined: str, values: int, *, name: str) -> None:
    """Adds `inference.image_scores` as `name`."""
    if values == 1:
        apply(graph, "ReduceMax", [combined], name=name, axes=[1, 2, 3], keepdims=0)
        return
    flat = apply(graph, "Flatten", [combined], name="combined/flat", axis=1)
    highest = top_k(graph, flat, values, name="combined/highest")
    apply(graph, "ReduceMean", [highest], name=name, axes=[1], keepdims=0)


def _leave_out(
    graph: Graph,
    maps: dict[str, str],
    combined: str,
    *,
    ignored: Ignored,
    values: int,
    scores: str,
) -> tuple[dict[str, str], str]:
    """Adds the scores of the values that count, and sets the others to 0 in all maps."""
    left_out = np.asarray(ignored.values)
    places = constant(graph, "ignored/values", left_out[:, None])
    zero = constant(graph, "ignored/zero", np.zeros((), np.float32))
    lowest = constant(graph, "ignored/lowest", np.array(np.finfo(np.float32).min))
    counted = apply(graph, "Where", [places, lowest, combined], name="combined/counted")
    _add_scores(graph, counted, min(values, int((~left_out).sum())), name=scores)
    left = {
        name: apply(graph, "Where", [places, zero, whole], name=f"{name}/left")
        for name, whole in {"combined": combined, **maps}.items()
    }
    combined = left.pop("combined")
    return left, combined


def _normalization(quantiles: MapQuantiles, name: str) -> dict[str, Float32[np.ndarray, ""]]:
    """Computes the constants of `_normalized_map`: the offset to subtract, then the factor."""
    return {
        f"{name}/offset": np.array(quantiles.a, np.float32),
        f"{name}/scale": np.array(0.1 / (quantiles.b - quantiles.a), np.float32),
    }


def _quantiles(calibration: Calibration) -> dict[str, MapQuantiles]:
    quantiles = {"local": calibration.local}
    if calibration.global_ is not None:
        quantiles["global"] = calibration.global_
    return quantiles
