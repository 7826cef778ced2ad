"""Chooses the score threshold from normal images, for a target false-alarm rate.

Of `n` normal images and one more of the same kind, each is the highest with the same probability:
a threshold above the k-th highest of the `n` scores is reached by the new one with probability
`k / (n + 1)` at most (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005).
That is the mean over all validation sets. Between sets the true false-alarm rate varies as
Beta(k, n - k + 1) (Vovk, Conditional validity of inductive conformal predictors, 2012; for
anomaly detectors Bates et al., Testing for outliers with conformal p-values, 2023). This assumes
nothing about the distribution of scores, only that future images are drawn as these were.

The maps' quantiles come from the same images. Without an autoencoder they do not change the order
of scores, and all of this is exact. With one they also weight the two maps, by all pixels of all
images.

The same image does not have the same score everywhere: another kind of processor, another number of
images in a batch or another way to compute convolutions adds up the same products in another order.
An image therefore counts as anomalous from a little above the threshold, by a margin, so that
the images that the threshold was chosen on are below it wherever they are scored.

The pixel threshold of regions is chosen by the same rule. The score of an image is then the highest
pixel threshold at which it has a region, and its rate is the part of the normal images with any
region.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import betaincinv

from efficientad_jax.detection.regions.components import Region, find_regions
from efficientad_jax.detection.regions.scores import region_score
from efficientad_jax.errors import InputError

_log = logging.getLogger(__name__)

# The probability that the interval contains the true rate.
CONFIDENCE = 0.95

# The margin of a threshold of 0, and how much it grows per unit of the threshold. In float32 the
# scores of one image differ by 1e-8 to 3e-5 between batches, ways to compute convolutions and
# processors. Those of two normal images differ by 0.01 and more: 0.1 is the `q_b`-quantile of
# normal pixels.
MARGIN = 1e-4

# Products such as 0.29 * 100 are slightly below the integer that is meant.
_ROUNDING = 1e-9


class Threshold(NamedTuple):
    """A threshold on image scores, and the rate of false alarms to expect from it.

    Attributes:
      value: just above the score that it was chosen by.
      false_alarm_rate: the target fraction of the normal images that count as anomalous, in (0, 1).
      low: lower bound of the true rate, in [0, 1].
      high: its upper bound: with 95 % probability the rate lies between the two.
      images: the number of validation images that the threshold was chosen on.
      margin: above the differences that rounding makes to the score of one image; 0 in detectors
        of versions that had none.
    """

    value: float
    false_alarm_rate: float
    low: float
    high: float
    images: int
    margin: float = 0.0

    @property
    def limit(self) -> float:
        """A score >= limit counts as anomalous."""
        return self.value + self.margin


class VerdictCounts(NamedTuple):
    """Counts of the verdicts by a threshold on labeled images.

    Attributes:
      false_alarms: normal images that count as anomalous.
      normal: all normal images.
      found: anomalous images that count as such.
      anomalous: all anomalous images.
    """

    false_alarms: int
    normal: int
    found: int
    anomalous: int


def choose_threshold(
    scores: Float[np.ndarray, " n"] | Sequence[float],
    false_alarm_rate: float,
    *,
    reports_few_images: bool = True,
) -> Threshold:
    """The lowest threshold whose mean false-alarm rate is at most the target.

    It is the next float32 above the k-th highest score, `k = floor(rate * (n + 1))`, so that the
    rate also holds where scores are equal. The margin is `MARGIN * (1 + |value|)`. With fewer than
    `1 / rate` images no threshold is known to keep the rate: the one above all scores is returned,
    with a warning. The interval is that of the Beta distribution with 2.5 % on either side.

    Args:
      scores: finite scores of normal images that were held out of training.
      false_alarm_rate: the target, in (0, 1).
      reports_few_images: whether to warn of fewer images than the rate needs.

    Raises:
      InputError: there is no score, one is not finite, or the rate is not in (0, 1).
    """
    threshold = _chosen(scores, false_alarm_rate)
    if reports_few_images:
        _report_few_images(threshold, "threshold")
    return threshold


def _chosen(
    scores: Float[np.ndarray, " n"] | Sequence[float], false_alarm_rate: float
) -> Threshold:
    """As `choose_threshold`, without a warning."""
    _check_rate(false_alarm_rate)
    with np.errstate(over="ignore"):  # overflow gives infinity, which is refused
        ordered = np.sort(np.asarray(scores, np.float32))[::-1]
    count = len(ordered)
    if not count or not np.isfinite(ordered).all():
        raise InputError(
            f"threshold: {count} validation scores, {int(np.isfinite(ordered).sum())} of them "
            "finite; expected at least one, and all of them finite"
        )
    allowed = math.floor(false_alarm_rate * (count + 1) + _ROUNDING)
    rank = min(max(allowed, 1), count)
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(betaincinv(rank, count - rank + 1, q)) for q in (tail, 1 - tail))
    value = float(np.nextafter(ordered[rank - 1], np.float32(np.inf)))
    margin = MARGIN * (1 + abs(value))
    return Threshold(value, false_alarm_rate, low, high, count, margin=margin)


def _check_rate(false_alarm_rate: float) -> None:
    if not 0 < false_alarm_rate < 1:
        raise InputError(f"false-alarm rate {false_alarm_rate}: expected one above 0 and below 1")


def _report_few_images(threshold: Threshold, name: str) -> None:
    """Warns of fewer images than the rate needs."""
    rate, count = threshold.false_alarm_rate, threshold.images
    if rate * count < 1 - _ROUNDING:
        _log.warning(
            "%s: too few validation images for a false-alarm rate of %s: %d, expected at "
            "least %d; it lies above all of their scores, and its true rate may be up to %s",
            name,
            percent(rate),
            count,
            math.ceil(1 / rate - _ROUNDING),
            percent(threshold.high),
        )


class RegionRule(NamedTuple):
    """The rule by which a detector finds regions.

    Attributes:
      threshold: of the pixels of the combined map at the image's own size. Its false-alarm rate is
        the fraction of the normal images with at least one region.
      smallest_area: number of pixels below which connected pixels are no region, at least 1.
      validation_scores: of each validation image the highest threshold at which it has a region, to
        choose other thresholds by.
    """

    threshold: Threshold
    smallest_area: int
    validation_scores: tuple[float, ...]

    def find(
        self, anomaly_map: Float[np.ndarray, "h w"], *, polygons: bool = False
    ) -> tuple[Region, ...]:
        """The regions of a combined map at the image's own size; see `find_regions`."""
        limit = self.threshold.limit
        return find_regions(anomaly_map, limit, self.smallest_area, polygons=polygons)

    def with_rate(self, false_positive_rate: float) -> "RegionRule":
        """The same rule with the threshold for another rate in (0, 1).

        Raises:
          InputError: the rate is out of range.
        """
        threshold = _chosen(self.validation_scores, false_positive_rate)
        _report_few_images(threshold, "pixel threshold")
        return self._replace(threshold=threshold)


def required_rule(rule: RegionRule | None) -> RegionRule:
    """A detector's rule for regions.

    Raises:
      InputError: it has none.
    """
    if rule is None:
        raise InputError(
            "detector: has no pixel threshold to find regions by; choose one with `efficientad "
            "set-threshold DETECTOR --region-false-positive-rate=0.01 --images=GOOD_IMAGES`"
        )
    return rule


def choose_region_rule(
    maps: Iterable[Float[np.ndarray, "_ _"]],
    false_positive_rate: float,
    smallest_area: int,
    *,
    reports_few_images: bool = True,
) -> RegionRule:
    """The lowest pixel threshold whose mean rate of images with a region is at most the target.

    Args:
      maps: combined maps of normal images that were held out of training, at the images' own
        sizes. They are read one at a time.
      false_positive_rate: target fraction of the normal images that have a region, in (0, 1).
      smallest_area: see `RegionRule`.
      reports_few_images: whether to warn of fewer images than the rate needs.

    Raises:
      InputError: there is no map, one is not finite, or the rate is out of range.
    """
    _check_rate(false_positive_rate)
    scores = tuple(region_score(anomaly_map, smallest_area) for anomaly_map in maps)
    threshold = _chosen(scores, false_positive_rate)
    if reports_few_images:
        _report_few_images(threshold, "pixel threshold")
    return RegionRule(threshold, smallest_area, scores)


def count_verdicts(
    threshold: Threshold, scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> VerdictCounts:
    """Counts the verdicts by a threshold on labeled images.

    Args:
      threshold: a score >= its limit counts as anomalous.
      scores: of the images.
      labels: 0 for normal, 1 for anomalous.
    """
    alarmed, anomalous = scores >= threshold.limit, labels == 1
    return VerdictCounts(
        false_alarms=int((alarmed & ~anomalous).sum()),
        normal=int((~anomalous).sum()),
        found=int((alarmed & anomalous).sum()),
        anomalous=int(anomalous.sum()),
    )


def summary(threshold: Threshold) -> str:
    """One readable line with the threshold and its expected rate of false alarms."""
    return (
        f"{threshold.value:.4g} for {percent(threshold.false_alarm_rate)} false alarms; the true "
        f"rate is {percent(threshold.low)} to {percent(threshold.high)}, with "
        f"{percent(CONFIDENCE)} probability, by {threshold.images} validation images"
    )


def region_summary(rule: RegionRule) -> str:
    """One readable line with the pixel threshold and its rate of normal images with a region."""
    threshold, area = rule.threshold, rule.smallest_area
    pixels = "1 pixel" if area == 1 else f"{area} pixels"
    return (
        f"{threshold.value:.4g} for regions of {pixels} or more in "
        f"{percent(threshold.false_alarm_rate)} of the good images; the true rate is "
        f"{percent(threshold.low)} to {percent(threshold.high)}, with {percent(CONFIDENCE)} "
        f"probability, by {threshold.images} validation images"
    )


def percent(part: float) -> str:
    """A fraction in [0, 1] as percent, with two significant digits."""
    return f"{100 * part:.2g} %" if part < 0.995 else f"{100 * part:.4g} %"


def checked_threshold(stored: dict[str, Any] | None, margin: Any = 0.0) -> Threshold | None:
    """A threshold from `detector.json`, which may come from anyone.

    Args:
      stored: its fields without the margin; None for no threshold.
      margin: is stored separately, as versions without a margin read the other fields too.

    Raises:
      TypeError: it has other fields.
      ValueError: one is out of range or of another type.
    """
    if stored is None:
        return None
    threshold = Threshold(**stored, margin=margin)
    *floats, images, _ = threshold
    if not (
        all(type(number) is float and math.isfinite(number) for number in (*floats, margin))
        and 0 < threshold.false_alarm_rate < 1
        and 0 <= threshold.low <= threshold.high <= 1
        and type(images) is int
        and images >= 1
        and margin >= 0
    ):
        raise ValueError(f"no threshold can be made of {str(stored)[:200]}, margin {margin!r:.20}")
    return threshold


def checked_scores(stored: list[float]) -> tuple[float, ...]:
    """Validation scores from `detector.json`.

    Raises:
      TypeError: it is no list.
      ValueError: one is no finite float.
    """
    if not isinstance(stored, list):
        raise TypeError("validation_scores is no list")
    if not all(type(score) is float and math.isfinite(score) for score in stored):
        raise ValueError("validation_scores: expected finite numbers")
    return tuple(stored)


def region_rule_fields(rule: RegionRule | None) -> dict[str, Any] | None:
    """A rule as JSON has it."""
    return None if rule is None else rule._asdict() | {"threshold": rule.threshold._asdict()}


def checked_region_rule(stored: dict[str, Any] | None) -> RegionRule | None:
    """A rule from `region_rule_fields`, which may come from anyone.

    Raises:
      KeyError: a field is missing.
      TypeError: a field is of another type, or one too many.
      ValueError: one is out of range.
    """
    if stored is None:
        return None
    fields: dict[str, Any] = dict(stored["threshold"])
    threshold = checked_threshold(fields, fields.pop("margin"))
    scores = checked_scores(stored["validation_scores"])
    rule = RegionRule(**{**stored, "threshold": threshold, "validation_scores": scores})
    area = rule.smallest_area
    if type(area) is not int or area < 1:
        raise ValueError(f"smallest_area {str(area)[:20]}: expected a whole number from 1")
    return rule


# The verdicts in words.
WORDS = {True: "anomalous", False: "normal", None: "no verdict"}


def is_anomalous(threshold: Threshold | None, score: float) -> bool | None:
    """Whether the score reaches the threshold, None without one."""
    return None if threshold is None else score >= threshold.limit


def score_fields(threshold: Threshold | None, score: float) -> dict[str, Any]:
    """The JSON fields of a score: the score, the verdict, and the threshold of the verdict."""
    return {
        "score": score,
        "verdict": is_anomalous(threshold, score),
        "threshold": None if threshold is None else threshold.limit,
    }
