"""An alarm when recent images no longer look like the validation images.

A lamp ages, a camera is moved, a product changes: scores shift long before anybody looks. The
monitor compares the last scores with the validation scores, which every detector holds, by the
statistic of Mann and Whitney: the share of pairs in which the recent score is the higher one, which
is 0.5 for two samples of one distribution. `shift` is that share minus 0.5. It compares the
brightness in the same way, as a detector may not react to the light before it has changed much.

Both samples are finite. Let F be the distribution of the values of good images, from which both
are drawn. The shift is the sum of two parts. One is that of the `m` validation values from F: their
mean rank under F has a standard deviation of 1 / sqrt(12 m), and in 95 of 100 validation sets it
is within 1.96 of them. The other is that of the `n` recent values, with 1 / sqrt(12 n), and a bound
that one of IMAGES_PER_FALSE_ALARM / EVERY tests exceeds, of scores or brightness. The limit is the
sum of the two bounds. So with 95 % probability over validation sets a detector gives at most one
false alarm per IMAGES_PER_FALSE_ALARM good images in the mean. A limit by the p-value of the test
of two samples keeps that rate only in the mean over validation sets: a detector with an unlucky one
would give many false alarms.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from efficientad_jax.detection.threshold import CONFIDENCE, WORDS

# Recent images that are compared with those of the validation images.
WINDOW = 50
# Images between two tests.
EVERY = 10
# In the mean there is at most one false alarm per so many good images.
IMAGES_PER_FALSE_ALARM = 10_000
# Scores and brightness are tested.
TESTS = 2
# With fewer validation images the normal distribution does not describe their mean rank.
FEWEST = 4


class DriftMonitor:
    """Counts scores and verdicts, and tests the last scores and brightnesses.

    Attributes:
      scores: compares scores.
      brightness: compares the mean values of the pixels, in [0, 255].
      edges: upper ends of the bins of the histogram, in ascending order: the tenths of the
        validation scores, without repetition.
      counts: scores in each bin; the last bin is that of scores above all validation scores.
      verdicts: number of scores by verdict: 'anomalous', 'normal' and 'no verdict'.
    """

    def __init__(
        self, validation_scores: Sequence[float], validation_brightness: Sequence[float] = ()
    ) -> None:
        """Starts without images. A detector of an old version may lack validation values."""
        self.scores = Comparison("the score", validation_scores)
        self.brightness = Comparison("the brightness", validation_brightness)
        tenths = np.quantile(validation_scores, np.arange(1, 11) / 10) if validation_scores else []
        self.edges: list[float] = np.unique(tenths).tolist()
        self.counts = [0] * (len(self.edges) + 1)
        self.verdicts = dict.fromkeys(WORDS.values(), 0)

    @property
    def alarm(self) -> bool | None:
        """Whether the last test of either found a shift; None before the first test."""
        alarms = [found.alarm for found in (self.scores, self.brightness)]
        return None if alarms == [None, None] else any(alarms)

    def add(self, score: float, verdict: bool | None, brightness: float) -> list[str]:
        """Takes the values of one more image.

        Returns:
          Lines for people where an alarm begins or ends.
        """
        self.counts[int(np.searchsorted(self.edges, score))] += 1
        self.verdicts[WORDS[verdict]] += 1
        lines = [self.scores.add(score), self.brightness.add(brightness)]
        return [line for line in lines if line]

    def fields(self) -> dict[str, Any]:
        """The state as JSON has it."""
        return {
            "alarm": self.alarm,
            "shift": self.scores.shift,
            "limit": self.scores.limit,
            "brightness_shift": self.brightness.shift,
            "brightness_limit": self.brightness.limit,
            "window": WINDOW,
            "validation_scores": self.scores.reference_count,
        }

    def summary(self) -> str:
        """One line with the histogram and the verdicts; '' without any score."""
        counted = {word: count for word, count in self.verdicts.items() if count}
        if not counted:
            return ""
        verdicts = ", ".join(f"{count} {word}" for word, count in counted.items())
        if not self.edges:
            return f"verdicts: {verdicts}"
        *inside, above = self.counts
        return (
            f"verdicts: {verdicts}; scores in the tenths of the validation scores: "
            f"{' '.join(map(str, inside))}, above them: {above}"
        )


class Comparison:
    """Compares the last values with those of the validation images.

    Attributes:
      shift: of the last test, in [-0.5, 0.5], above 0 if recent values are higher than those of
        the validation images; None before the first.
      limit: a shift above it, or below its negative, is an alarm; None with too few validation
        values.
      reference_count: number of validation values.
    """

    def __init__(self, name: str, reference: Sequence[float]) -> None:
        """Starts without values; `name` is that of the values in lines for people."""
        self._name = name
        self._reference = np.sort(np.asarray(reference, np.float64))
        self.reference_count = len(self._reference)
        enough = self.reference_count >= FEWEST
        self.limit = drift_limit(self.reference_count) if enough else None
        self.shift: float | None = None
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._untested = 0

    @property
    def alarm(self) -> bool | None:
        """Whether the last test found a shift; None before the first test."""
        if self.shift is None or self.limit is None:
            return None
        return abs(self.shift) > self.limit

    def add(self, value: float) -> str:
        """Takes one more value; a line for people where an alarm begins or ends, else ''."""
        self._recent.append(value)
        self._untested += 1
        is_due = len(self._recent) == WINDOW and self._untested >= EVERY
        if self.limit is None or not is_due:
            return ""
        before = bool(self.alarm)
        self._untested = 0
        self.shift = mann_whitney_shift(self._reference, np.array(self._recent))
        if bool(self.alarm) == before:
            return ""
        shift = f"(shift {self.shift:+.2f}, limit {self.limit:.2f})"
        images = f"the {self.reference_count} validation images"
        if before:
            return f"{self._name}: again like that of {images} {shift}"
        return (
            f"{self._name}: no longer like that of {images} {shift}; has the camera, the light or "
            "the product changed?"
        )


def drift_limit(validation_values: int) -> float:
    """The size of a shift above which recent values count as different.

    Args:
      validation_values: how many there are.
    """
    of_reference = -ndtri((1 - CONFIDENCE) / 2) / np.sqrt(12 * validation_values)
    # Either end of the distribution of either test.
    of_window = -ndtri(EVERY / IMAGES_PER_FALSE_ALARM / 2 / TESTS) / np.sqrt(12 * WINDOW)
    return float(of_reference + of_window)


def mann_whitney_shift(
    reference: Float[np.ndarray, " m"], recent: Float[np.ndarray, " n"]
) -> float:
    """The share of pairs in which the recent value is the higher one, minus 0.5.

    It is `scipy.stats.mannwhitneyu(recent, reference).statistic / (m * n) - 0.5`, without the
    p-value.

    Args:
      reference: sorted.
      recent: in any order.
    """
    below = np.searchsorted(reference, recent, side="left")
    not_above = np.searchsorted(reference, recent, side="right")
    return float((below + not_above).mean() / (2 * len(reference)) - 0.5)
