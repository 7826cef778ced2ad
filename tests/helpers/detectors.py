"""Networks and detectors with random parameters."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import Calibration, DetectorParams
from efficientad_jax.detection.map_normalization import MapQuantiles
from efficientad_jax.detection.spec import DetectorSpec, networks_of
from efficientad_jax.detection.threshold import RegionRule, Threshold

SPEC = DetectorSpec("small", 1, (128, 128), False, "float32", autoencoder=False)


def random_params(network, image_size, seed=0):
    """Parameters of a network, biases large enough to matter."""
    image = jnp.zeros((1, *image_size, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    rng = np.random.default_rng(seed)

    def fill(leaf):
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return jnp.asarray(rng.standard_normal(leaf.shape) * (2 / fan_in) ** 0.5, jnp.float32)

    return jax.tree.map(fill, shapes)


def random_detector(
    spec: DetectorSpec = SPEC,
    seed: int = 0,
    *,
    upsample_first: bool = False,
    score_values: int = 1,
    config: dict[str, Any] | None = None,
) -> Detector:
    """A detector without a threshold; teacher, student and autoencoder have seeds of their own."""
    networks = networks_of(spec)
    params = DetectorParams(
        *(random_params(network, spec.input_size, seed + i) for i, network in enumerate(networks))
    )
    if not spec.autoencoder:
        params = params._replace(autoencoder=None)
    global_ = MapQuantiles(0.2, 1.0) if spec.autoencoder else None
    calibration = Calibration(MapQuantiles(0.5, 2.0), global_, upsample_first, score_values)
    return Detector(spec, params, calibration, config or {}, {})


def with_regions(detector: Detector, value: float, smallest_area: int = 1) -> Detector:
    """The same detector with a pixel threshold of this value."""
    threshold = Threshold(value, 0.05, 0.01, 0.1, 100)
    return replace(detector, region_rule=RegionRule(threshold, smallest_area, ()))


def with_threshold(detector: Detector, value: float) -> Detector:
    """The same detector with a threshold of this value."""
    return replace(detector, threshold=Threshold(value, 0.01, 0.001, 0.05, 100))
