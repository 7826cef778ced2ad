"""Adds the distance of PUAD to the scores of an ONNX graph; see `detection.puad`."""

import numpy as np

from efficientad_jax.detection.detector import Detector
from efficientad_jax.export.onnx_graph import Graph, apply, constant


def add_distance(graph: Graph, detector: Detector, scores: str, *, features: str, name: str) -> str:
    """Adds scores with PUAD.

    Args:
      graph: the operators are added to it.
      detector: uses PUAD.
      scores: name of the scores of the maps, `[n]`.
      features: name of the student's features that imitate the teacher, `[n, c, oh, ow]`.
      name: of the result.

    Returns:
      `name`.
    """
    statistics, scale = detector.params.puad, detector.calibration.puad
    assert statistics is not None
    assert scale is not None
    constants = {
        "mean": np.asarray(statistics.mean, np.float32),
        "whitening": np.asarray(statistics.whitening, np.float32),
        "distance_mean": np.array(scale.distance_mean, np.float32),
        "weight": np.array(scale.weight, np.float32),
    }
    names = {key: constant(graph, f"puad/{key}", value) for key, value in constants.items()}
    means = _mean_features(graph, detector, features)
    deviations = apply(graph, "Sub", [means, names["mean"]], name="puad/deviations")
    white = apply(graph, "MatMul", [deviations, names["whitening"]], name="puad/white")
    distances = apply(graph, "ReduceL2", [white], name="puad/distances", axes=[1], keepdims=0)
    above = apply(graph, "Sub", [distances, names["distance_mean"]], name="puad/above")
    added = apply(graph, "Mul", [above, names["weight"]], name="puad/added")
    return apply(graph, "Add", [scores, added], name=name)


def _mean_features(graph: Graph, detector: Detector, features: str) -> str:
    """Adds `puad.distance.mean_features`."""
    weights = detector.output_weights()
    if weights is None:
        return apply(graph, "ReduceMean", [features], name="puad/features", axes=[2, 3], keepdims=0)
    stored = constant(graph, "puad/outputs", weights[:, None])
    weighted = apply(graph, "Mul", [features, stored], name="puad/weighted")
    axes = constant(graph, "puad/axes", np.array([2, 3], np.int64))
    return apply(graph, "ReduceSum", [weighted, axes], name="puad/features", keepdims=0)
