"""Scores of other quantiles, from the maps of one detector."""

import numpy as np

from efficientad_jax.benchmark.implementations import random_images, random_weights
from efficientad_jax.detection.calibration import calibrate
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.spec import DetectorSpec
from efficientad_jax.reproduction.recalibration import CalibrationChoice, recalibrated_scores

SIZE = (128, 128)


def test_scores_of_other_quantiles_are_those_of_a_detector_calibrated_so() -> None:
    params, calibration = random_weights("small", SIZE)
    spec = DetectorSpec("small", 384, SIZE, False, "float32", True)
    detector = Detector(spec, params, calibration, {}, {})
    validation, test = random_images(2, SIZE), random_images(4, SIZE)[2:]
    choices = [CalibrationChoice(0.5, 0.99, True), CalibrationChoice(0.9, 0.995, False)]
    found = recalibrated_scores(detector, validation, test, choices)
    for choice, scores in zip(choices, found, strict=True):
        expected, _ = calibrate(detector.networks, params, validation, **choice._asdict())
        own = Detector(spec, params, expected, {}, {}).detect(test).scores
        np.testing.assert_allclose(scores, own, rtol=1e-4)
    assert not np.allclose(found[0], found[1])
