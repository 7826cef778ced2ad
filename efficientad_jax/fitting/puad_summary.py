"""Describes the effect of PUAD on the validation scores of a detector, in one line."""

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.puad.standardization import PuadScores, sets_scale
from efficientad_jax.detection.threshold import choose_threshold


def puad_summary(detector: Detector) -> str:
    """One line: how the validation scores with PUAD differ from those without it.

    The images are those that did not set the scale. With a threshold, it counts how many of their
    verdicts differ between the two thresholds, each chosen by scores of its kind.

    Args:
      detector: with scores with and without PUAD.
    """
    assert detector.puad is not None
    used = "used" if detector.calibration.puad is not None else "not used"
    combined, plain = _paired(detector.puad)
    rank = np.corrcoef(rankdata(plain), rankdata(combined))[0, 1]
    line = f"{used}; on {len(plain)} validation images the rank correlation with and without it is "
    line += f"{rank:.3f}"
    if detector.threshold is None:
        return line
    rate = detector.threshold.false_alarm_rate
    thresholds = [
        choose_threshold(scores, rate, reports_few_images=False)
        for scores in (detector.puad.combined, detector.puad.plain)
    ]
    verdicts = [
        scores >= threshold.value
        for scores, threshold in zip((combined, plain), thresholds, strict=True)
    ]
    changed = int((verdicts[0] != verdicts[1]).sum())
    with_puad, without = (f"{threshold.value:.4g}" for threshold in thresholds)
    return f"{line}, {changed} verdicts change, threshold {with_puad} with and {without} without it"


def _paired(scores: PuadScores) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """The scores with and without PUAD of the images that did not set the scale."""
    plain = np.array(scores.plain)
    return np.array(scores.combined), plain[~sets_scale(len(plain))]
