"""Whether a score is an alarm."""

from typing import NamedTuple

from efficientad_jax.detector import Detector


class Verdict(NamedTuple):
    """What a score means.

    Attributes:
      anomalous: whether the score reaches the threshold, None for a detector without one.
      threshold: the detector's, None if it has none.
    """

    anomalous: bool | None
    threshold: float | None

    @property
    def word(self) -> str:
        """For people: 'anomalous', 'normal' or 'no verdict'."""
        return {True: "anomalous", False: "normal", None: "no verdict"}[self.anomalous]


def verdict_of(detector: Detector, score: float) -> Verdict:
    """The verdict of a detector on an image with this score."""
    threshold = detector.threshold
    if threshold is None:
        return Verdict(None, None)
    return Verdict(bool(score >= threshold.value), threshold.value)
