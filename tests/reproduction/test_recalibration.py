"""Tests scores with other quantiles, from the maps of one detector."""

import numpy as np
import pytest

from efficientad_jax.benchmark.implementations import random_images, random_weights
from efficientad_jax.detection.calibration import calibrate
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.spec import DetectorSpec
from efficientad_jax.reproduction.recalibration import CalibrationChoice, recalibrated_scores

SIZE = (128, 128)


@pytest.mark.slow
def test_scores_of_other_quantiles_are_those_of_a_detector_calibrated_so() -> None:
    params, calibration = random_weights("small", SIZE)
    calibration = calibration._replace(score_values=20)
    spec = DetectorSpec("small", 384, SIZE, False, "float32", True)
    detector = Detector(spec, params, calibration, {}, {})
    validation, test = random_images(2, SIZE), random_images(4, SIZE)[2:]
    choices = [CalibrationChoice(0.5, 0.99, True), CalibrationChoice(0.9, 0.995, False)]
    actual = recalibrated_scores(detector, validation, test, choices)
    for choice, scores in zip(choices, actual, strict=True):
        expected, *_ = calibrate(
            detector.networks, params, validation, score_values=20, **choice._asdict()
        )
        direct = Detector(spec, params, expected, {}, {}).detect(test).scores
        np.testing.assert_allclose(scores, direct, rtol=1e-4)
    assert not np.allclose(actual[0], actual[1])
