"""An alarm when recent scores no longer look like those of the validation images.

A lamp ages, a camera is moved, a product changes: scores shift long before anybody looks. The
monitor compares the last `WINDOW` scores with the validation scores, which every detector holds, by
the two-sample Kolmogorov-Smirnov distance: the largest difference between the two distribution
functions.

Both samples are finite. Let F be the distribution of the scores of good images, from which both
are drawn. The distance between them is at most the sum of their distances from F. That of the `m`
validation scores stays below its 0.95-quantile in 95 of 100 validation sets. That of the window
exceeds its (1 - EVERY / IMAGES_PER_FALSE_ALARM)-quantile in one of IMAGES_PER_FALSE_ALARM / EVERY
tests. The limit is the sum of the two quantiles, which are exact for any continuous F (Marsaglia,
Tsang and Wang, Evaluating Kolmogorov's distribution, 2003) and conservative for others. A test is
made every `EVERY` images. So with 95 % probability over validation sets a detector gives at most
one false alarm per `IMAGES_PER_FALSE_ALARM` good images in the mean. A limit by the p-value of the
two-sample test would keep that rate only in the mean over validation sets: a detector with an
unlucky one would give many false alarms.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import kstwo

from efficientad_jax.detection.threshold import CONFIDENCE, WORDS

# Scores that are compared with those of the validation images.
WINDOW = 50
# Images between two tests.
EVERY = 10
# In the mean there is at most one false alarm per so many good images.
IMAGES_PER_FALSE_ALARM = 10_000


class ScoreMonitor:
    """Counts scores and verdicts, and tests the last scores.

    Attributes:
      limit: a distance above it is an alarm; None for too few validation scores.
      distance: of the last test, in [0, 1]; None before the first.
      edges: upper ends of the bins of the histogram, in ascending order: the tenths of the
        validation scores, without repetition.
      counts: scores in each bin; the last bin is that of scores above all validation scores.
      verdicts: number of scores by verdict: 'anomalous', 'normal' and 'no verdict'.
    """

    def __init__(self, validation_scores: Sequence[float]) -> None:
        """Starts without scores. A detector of an old version has no validation scores."""
        self._reference = np.sort(np.asarray(validation_scores, np.float64))
        count = len(self._reference)
        limit = drift_limit(count)
        self.limit = limit if limit < 1 else None
        self.distance: float | None = None
        tenths = np.quantile(self._reference, np.arange(1, 11) / 10) if count else []
        self.edges: list[float] = np.unique(tenths).tolist()
        self.counts = [0] * (len(self.edges) + 1)
        self.verdicts = dict.fromkeys(WORDS.values(), 0)
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._untested = 0

    @property
    def alarm(self) -> bool | None:
        """Whether the last test found a difference; None before the first test."""
        if self.distance is None or self.limit is None:
            return None
        return self.distance > self.limit

    def add(self, score: float, verdict: bool | None) -> str:
        """Takes the score of one more image.

        Returns:
          A line for people where an alarm begins or ends, else ''.
        """
        self.counts[int(np.searchsorted(self.edges, score))] += 1
        self.verdicts[WORDS[verdict]] += 1
        self._recent.append(score)
        self._untested += 1
        is_due = len(self._recent) == WINDOW and self._untested >= EVERY
        if self.limit is None or not is_due:
            return ""
        before = bool(self.alarm)
        self._untested = 0
        self.distance = ks_distance(self._reference, np.sort(self._recent))
        if bool(self.alarm) == before:
            return ""
        distance = f"(distance {self.distance:.2f}, limit {self.limit:.2f})"
        if before:
            return f"scores: the last {WINDOW} look like the validation scores again {distance}"
        return (
            f"scores: the last {WINDOW} no longer look like the {len(self._reference)} validation "
            f"scores {distance}; has the camera, the light or the product changed?"
        )

    def fields(self) -> dict[str, Any]:
        """The state as JSON has it."""
        return {
            "alarm": self.alarm,
            "distance": self.distance,
            "limit": self.limit,
            "window": WINDOW,
            "validation_scores": len(self._reference),
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


def drift_limit(validation_scores: int) -> float:
    """The distance above which the window counts as different.

    Args:
      validation_scores: how many there are. With fewer than 4 the limit is 1 or so close to it that
        no distance, or only one of two samples without overlap, is above it.
    """
    if not validation_scores:
        return 1.0
    of_reference = kstwo.ppf(CONFIDENCE, validation_scores)
    of_window = kstwo.isf(EVERY / IMAGES_PER_FALSE_ALARM, WINDOW)
    return float(min(1.0, of_reference + of_window))


def ks_distance(first: Float[np.ndarray, " m"], second: Float[np.ndarray, " n"]) -> float:
    """The largest difference of the distribution functions of two sorted samples, in [0, 1].

    It is `scipy.stats.ks_2samp(first, second).statistic`, without its p-value.
    """
    values = np.concatenate([first, second])
    shares = [np.searchsorted(s, values, side="right") / len(s) for s in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())
