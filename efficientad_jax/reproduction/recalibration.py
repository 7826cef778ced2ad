"""Evaluates a detector with other quantiles; its maps are computed only once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from efficientad_jax.detection.calibration import (
    calibration_of_maps,
    collect_raw_maps,
    scores_of_maps,
)
from efficientad_jax.detection.detector import Detector


class CalibrationChoice(NamedTuple):
    """The options of `calibration.calibrate`.

    Attributes:
      q_a: the quantile that is mapped to 0.
      q_b: the quantile that is mapped to 0.1.
      normalize: False leaves the maps unchanged.
    """

    q_a: float
    q_b: float
    normalize: bool


def recalibrated_scores(
    detector: Detector,
    validation_images: UInt8[np.ndarray, "v h w 3"],
    test_images: UInt8[np.ndarray, "n h w 3"],
    choices: Sequence[CalibrationChoice],
) -> list[Float[np.ndarray, " n"]]:
    """Computes image scores of the test images for each calibration.

    Args:
      detector: a trained one; of its calibration, `upsample_first` and `score_values` are used.
      validation_images: normal images for the calibration, at the detector's input size.
      test_images: images to score, at the detector's input size.
      choices: the calibrations.

    Raises:
      InputError: a map is constant over all validation images.
    """
    upsample_first = detector.calibration.upsample_first
    validation, test = (
        collect_raw_maps(
            detector.networks,
            detector.params,
            images,
            upsample_first=upsample_first,
            ignored=detector.ignored_in(),
        )
        for images in (validation_images, test_images)
    )

    return [
        scores_of_maps(
            test,
            calibration_of_maps(
                validation,
                choice.q_a,
                choice.q_b,
                upsample_first=upsample_first,
                normalize=choice.normalize,
                ignored=detector.ignored_in(),
            )._replace(score_values=detector.calibration.score_values),
            detector.ignored_in(),
        )
        for choice in choices
    ]
