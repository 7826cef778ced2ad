"""Scores and maps of a batch, at the resolution of the networks' outputs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from efficientad_jax.detection.detector import BATCH_SIZE, Detector


class Scored(NamedTuple):
    """The result of the detector for one image.

    Attributes:
      score: of the whole image.
      anomaly_map: the combined map, not yet resized to the image.
    """

    score: float
    anomaly_map: Float[np.ndarray, "h w"]


def score_batch(detector: Detector, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[Scored]:
    """Detects in images that are already resized to the detector's input.

    Args:
      detector: calibrated.
      images: at most `BATCH_SIZE`, RGB at `detector.spec.input_size`.
    """
    detections = detector.detect_resized(np.stack(images))
    return [Scored(detection.score, detection.anomaly_map) for detection in detections]


def warm_up(detector: Detector) -> None:
    """Compiles the programs of `score_batch`, so that no request waits for it."""
    image = np.zeros((*detector.spec.input_size, 3), np.uint8)
    for count in (1, BATCH_SIZE):
        score_batch(detector, [image] * count)
