"""Recall of known defects at thresholds, and which way to compute scores finds more of them.

Nothing is trained on them. They choose among a few candidates only: the rule of the score, the
weights of the two maps, and PUAD on or off where the detector has its statistics. A candidate is
suggested if its AU-ROC is higher than that of the present score in a bootstrap over defects and
good images (Efron and Tibshirani, An Introduction to the Bootstrap, 1993), with a level that allows
for the number of candidates (Bonferroni).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.stats import binomtest, norm

from efficientad_jax.detection.calibration import collect_raw_maps, scores_of_maps
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import Calibration
from efficientad_jax.detection.map_normalization import MapQuantiles
from efficientad_jax.detection.puad.distance import distances_on_host
from efficientad_jax.detection.puad.standardization import (
    PuadScores,
    add_distances,
    sets_scale,
    standardize,
)
from efficientad_jax.detection.threshold import CONFIDENCE, choose_threshold, percent

# Rates of false alarms whose thresholds are shown.
_RATES = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2)
# The candidates.
_RULES = (1, 5, 20, 100)
_LOCAL_WEIGHTS = (0.25, 0.5, 0.75)

# With fewer defects or good images the bootstrap's intervals are too narrow.
FEWEST = 5
_RESAMPLINGS = 2000


class Inputs(NamedTuple):
    """Images as the networks get them.

    Attributes:
      images: as `Detector.network_input` returns them, of a detector that cuts no tiles.
      seen: height and width of the region of interest of each.
      own_masks: see `ImageSet.own_masks`.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    seen: list[tuple[int, int]]
    own_masks: Bool[np.ndarray, "n h w"] | None = None


class Recall(NamedTuple):
    """How many defects a threshold finds.

    Attributes:
      limit: a score at or above it counts as anomalous.
      false_alarm_rate: the threshold's target, in (0, 1).
      found: number of defects with such a score.
      low: lower bound of the recall for defects like these, in [0, 1].
      high: upper bound; the two are Clopper and Pearson's for 95 %.
    """

    limit: float
    false_alarm_rate: float
    found: int
    low: float
    high: float


class Candidate(NamedTuple):
    """A way to compute scores from the two maps.

    Attributes:
      score_values: see `Calibration`.
      local_weight: of the local map in (0, 1), where that of the global map is 1 minus it; the
        present weights count as one half each.
      calibration: computes these scores, but for PUAD.
      puad: whether they have PUAD.
    """

    score_values: int
    local_weight: float
    calibration: Calibration
    puad: bool = False


class Comparison(NamedTuple):
    """The scores of a candidate, compared with the present ones.

    Attributes:
      candidate: the way to compute scores.
      good: its scores of the good images.
      found: number of defects found at the threshold for the present rate of false alarms.
      auroc: of the defects against the good images, in [0, 1].
      low: lower bound of the difference to the AU-ROC of the present scores, in [-1, 1].
      high: its upper bound.
      puad: its scores of all good images with and without PUAD; None without PUAD's statistics.
    """

    candidate: Candidate
    good: Float[np.ndarray, " m"]
    found: int
    auroc: float
    low: float
    high: float
    puad: PuadScores | None = None


def recalls(detector: Detector, scores: Float[np.ndarray, " n"]) -> list[Recall]:
    """Recall at the detector's threshold, which is the first, and at those of other rates.

    Args:
      detector: with validation scores; rates that these cannot resolve are left out.
      scores: of defects.
    """
    thresholds = [] if detector.threshold is None else [detector.threshold]
    images = len(detector.validation_scores)
    thresholds += [
        choose_threshold(detector.validation_scores, rate)
        for rate in _RATES
        if rate * images >= 1 and all(rate != t.false_alarm_rate for t in thresholds)
    ]
    rows = []
    for threshold in thresholds:
        count = int((scores >= threshold.limit).sum())
        interval = binomtest(count, len(scores)).proportion_ci(CONFIDENCE)
        bounds = float(interval.low), float(interval.high)
        rows.append(Recall(threshold.limit, threshold.false_alarm_rate, count, *bounds))
    return rows


def candidates(calibration: Calibration, *, has_puad: bool = False) -> list[Candidate]:
    """The present way to compute scores, which is the first, and others.

    With the statistics of PUAD one of the others is the present way with PUAD on or off; the rest
    are without it.
    """
    rules = (1,) if calibration.upsample_first else _RULES
    weights = (0.5,) if calibration.global_ is None else _LOCAL_WEIGHTS
    present = Candidate(calibration.score_values, 0.5, calibration, calibration.puad is not None)
    calibration = calibration._replace(puad=None)
    others = [
        Candidate(rule, weight, _weighted(calibration, weight)._replace(score_values=rule))
        for weight in weights
        for rule in dict.fromkeys((calibration.score_values, *rules))
    ]
    if has_puad and not present.puad:
        others.append(present._replace(puad=True))
    return [present, *(other for other in others if _way(other) != _way(present))]


def _way(candidate: Candidate) -> tuple[int, float, bool]:
    return candidate.score_values, candidate.local_weight, candidate.puad


def _weighted(calibration: Calibration, local_weight: float) -> Calibration:
    """A calibration whose combined map weights the two maps.

    The combined map is the mean of the normalized maps. A map whose scale `b - a` is divided by 2w
    counts with a weight of w. So every program that runs a detector knows weights.
    """
    if calibration.global_ is None or local_weight == 0.5:
        return calibration

    def scaled(quantiles: MapQuantiles, weight: float) -> MapQuantiles:
        a, b = quantiles
        return MapQuantiles(a, a + (b - a) / (2 * weight))

    return calibration._replace(
        local=scaled(calibration.local, local_weight),
        global_=scaled(calibration.global_, 1 - local_weight),
    )


def compare(
    detector: Detector, good: Inputs, defects: Inputs, *, false_alarm_rate: float
) -> list[Comparison]:
    """Compares the candidates; the first is the present way to compute scores.

    Args:
      detector: calibrated.
      good: good images that it was not trained on.
      defects: images of defects.
      false_alarm_rate: at which defects are counted, in (0, 1).
    """
    tried = candidates(detector.calibration, has_puad=detector.puad is not None)
    measured = [_measure(detector, inputs, tried) for inputs in (good, defects)]
    scored = [_scores(detector, tried, i, measured=measured) for i in range(len(tried))]
    wins = np.stack([_wins(bad, fine) for fine, bad, _ in scored])
    intervals = difference_intervals(wins)
    return [
        Comparison(
            candidate,
            fine,
            int((bad >= choose_threshold(fine, false_alarm_rate).limit).sum()),
            float(win.mean()),
            *interval,
            puad,
        )
        for candidate, (fine, bad, puad), win, interval in zip(
            tried, scored, wins, intervals, strict=True
        )
    ]


def compared_images(detector: Detector, good: int) -> int:
    """How many of so many good images are compared: a part sets the scale of PUAD, if any."""
    return good if detector.puad is None else int((~sets_scale(good)).sum())


class _Measured(NamedTuple):
    """Scores of images by each candidate, without PUAD, and distances if there are statistics."""

    scores: list[Float[np.ndarray, " n"]]
    distances: Float[np.ndarray, " n"] | None


def _measure(detector: Detector, inputs: Inputs, tried: list[Candidate]) -> _Measured:
    ignored = detector.ignored_in(inputs.seen, inputs.own_masks)
    maps = collect_raw_maps(
        detector.networks,
        detector.params,
        inputs.images,
        upsample_first=detector.calibration.upsample_first,
        ignored=ignored,
        weights=detector.output_weights(inputs.seen, inputs.own_masks),
    )
    scores = [scores_of_maps(maps, c.calibration, ignored) for c in tried]
    if detector.params.puad is None:
        return _Measured(scores, None)
    return _Measured(scores, distances_on_host(detector.params.puad, np.asarray(maps.features)))


def _scores(
    detector: Detector, tried: list[Candidate], index: int, *, measured: list[_Measured]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " n"], PuadScores | None]:
    """The scores of a candidate: of compared good images and of defects, and those with PUAD.

    Raises:
      InputError: there are too few good images for PUAD, or they do not vary.
    """
    fine, bad = (part.scores[index] for part in measured)
    distances = [part.distances for part in measured if part.distances is not None]
    if not distances:
        return fine, bad, None
    puad, rest = standardize(fine, distances[0]), ~sets_scale(len(fine))
    if not tried[index].puad:
        return fine[rest], bad, puad
    # The present scores have the detector's own scale.
    scale = detector.calibration.puad or puad.scale
    scores = add_distances(fine, distances[0], scale)[rest]
    return scores, add_distances(bad, distances[1], scale), puad


def _wins(
    defects: Float[np.ndarray, " n"], good: Float[np.ndarray, " m"]
) -> Float[np.ndarray, "n m"]:
    """1 where a defect has the higher score, 0.5 where both are equal; the mean is the AU-ROC."""
    difference = defects.astype(np.float64)[:, None] - good.astype(np.float64)
    return (difference > 0) + 0.5 * (difference == 0)


def difference_intervals(wins: Float[np.ndarray, "k n m"]) -> list[tuple[float, float]]:
    """Intervals of the difference of each AU-ROC to the first.

    They are normal ones with the standard error of a bootstrap over defects and good images. Its
    quantiles would be too narrow for ten defects: in simulations of two equal scores they missed
    the difference, 0, in 7 to 10 % of the cases, and these intervals in 5 %.

    Args:
      wins: of each of k scores, as `_wins` gives them.

    Returns:
      Lower and upper bound of each. With 95 % probability all of them hold together.
    """
    count, defects, good = wins.shape
    rng = np.random.default_rng(0)
    # How often each image is drawn, per resampling. One fewer than there are: the variance of a
    # sample that is drawn from n images is too small by (n - 1) / n.
    drawn = [
        rng.multinomial(size - 1, np.full(size, 1 / size), _RESAMPLINGS) / max(1, size - 1)
        for size in (defects, good)
    ]
    tail = (1 - CONFIDENCE) / 2 / max(1, count - 1)
    intervals = []
    for win in wins - wins[0]:
        error = ((drawn[0] @ win) * drawn[1]).sum(1).std()
        half = float(norm.isf(tail) * error)
        intervals.append((float(win.mean()) - half, float(win.mean()) + half))
    return intervals


def suggestion(comparisons: Sequence[Comparison]) -> Comparison | None:
    """The candidate with the highest AU-ROC of those that are surely better than the present one.

    None where there is no such one, or too few images to tell; see `FEWEST`.
    """
    better = [comparison for comparison in comparisons[1:] if comparison.low > 0]
    return max(better, key=lambda comparison: comparison.auroc, default=None)


def with_candidate(detector: Detector, comparison: Comparison) -> Detector:
    """The detector with the scores of a candidate, and the threshold for its present rate.

    Its metrics are those of other scores and are removed. With PUAD's statistics, the scores
    without PUAD are those of all good images.
    """
    candidate, puad, threshold = comparison.candidate, comparison.puad, detector.threshold
    calibration = candidate.calibration._replace(puad=None)
    scores = comparison.good if puad is None else np.array(puad.plain)
    if candidate.puad and puad is not None:
        calibration = calibration._replace(puad=puad.scale)
        scores = np.array(puad.combined)
    chosen = detector.config.get("calibration")
    config = detector.config
    if isinstance(chosen, dict):
        rule = {"score": rule_name(candidate.score_values), "puad": candidate.puad}
        config = config | {"calibration": chosen | rule}
    return replace(
        detector,
        calibration=calibration,
        puad=puad,
        validation_scores=tuple(scores.tolist()),
        threshold=threshold and choose_threshold(scores, threshold.false_alarm_rate),
        config=config,
        metrics={},
    )


def rule_name(score_values: int) -> str:
    """The rule as `config.calibration.score` names it."""
    return "max" if score_values == 1 else f"top{score_values}"


def way_name(candidate: Candidate) -> str:
    """The rule, and whether the score has PUAD."""
    return rule_name(candidate.score_values) + (" with PUAD" if candidate.puad else "")


def recall_lines(rows: Sequence[Recall], defects: int) -> Iterator[str]:
    """A table of the recall at each threshold."""
    yield "false alarms  threshold  found"
    for recall in rows:
        yield (
            f"{percent(recall.false_alarm_rate):>12}  {recall.limit:>9.4g}  {recall.found} of "
            f"{defects}; recall {percent(recall.low)} to {percent(recall.high)}"
        )


def comparison_lines(comparisons: Sequence[Comparison], defects: int) -> Iterator[str]:
    """A table of the candidates, the best first."""
    present = comparisons[0]
    has_weights = any(c.candidate.local_weight != 0.5 for c in comparisons)
    width = max(6, *(len(way_name(c.candidate)) for c in comparisons))
    title = f"{'score':<{width}}  {'local map  ' if has_weights else ''}"
    yield f"{title}AU-ROC  found  against the present score"
    for c in sorted(comparisons, key=lambda c: -c.auroc):
        weight = f"{percent(c.candidate.local_weight):>9}  " if has_weights else ""
        difference = "present" if c is present else f"{c.low:+.3f} to {c.high:+.3f}"
        yield (
            f"{way_name(c.candidate):<{width}}  {weight}{c.auroc:.4f}  "
            f"{c.found:>2} of {defects}  {difference}"
        )
