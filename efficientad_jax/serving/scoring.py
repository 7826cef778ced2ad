"""Scores and maps of a batch, at the resolution of the networks' outputs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from efficientad_jax.data.image_rows import rows_of_array
from efficientad_jax.detection.detector import BATCH_SIZE, Detector
from efficientad_jax.detection.tiling import compute_tiled_maps, enlarge


class Scored(NamedTuple):
    """The result of the detector for one image.

    Attributes:
      score: of the whole image.
      anomaly_map: the combined map, not yet resized to the image unless it was cut into tiles.
    """

    score: float
    anomaly_map: Float[np.ndarray, "h w"]


def score_batch(
    detector: Detector,
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]],
    *,
    seen: Sequence[tuple[int, int]] | None = None,
    own_masks: Bool[np.ndarray, "n h w"] | None = None,
) -> list[Scored]:
    """Detects in images that are already resized to the detector's input.

    Args:
      detector: calibrated.
      images: at most `BATCH_SIZE`, RGB at `detector.spec.input_size`; as they are, for a detector
        that cuts them into tiles.
      seen: see `Detector.detect`.
      own_masks: see `Detector.detect`.
    """
    if detector.framing.fit == "tile":
        return [_score_tiles(detector, image) for image in images]
    detections = detector.detect_resized(np.stack(images), seen=seen, own_masks=own_masks)
    return [Scored(detection.score, detection.anomaly_map) for detection in detections]


def _score_tiles(detector: Detector, image: UInt8[np.ndarray, "h w 3"]) -> Scored:
    tiled = compute_tiled_maps(detector, rows_of_array(image))
    return Scored(tiled.score, enlarge(detector, tiled, tiled.combined))


def warm_up(detector: Detector) -> None:
    """Compiles the programs of `score_batch`, so that no request waits for it."""
    images = np.zeros((BATCH_SIZE, *detector.spec.input_size, 3), np.uint8)
    for count in (1, BATCH_SIZE):
        if detector.framing.fit == "tile":
            detector.detect_tiles(images[: detector.batch_size(count)])
        else:
            seen = [detector.spec.input_size] * count if detector.framing.fit == "pad" else None
            score_batch(detector, list(images[:count]), seen=seen)
