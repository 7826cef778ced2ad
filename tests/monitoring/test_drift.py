"""The alarm on scores that no longer look like the validation scores."""

import numpy as np
import pytest
from scipy.stats import ks_2samp, kstwo

from efficientad_jax.monitoring.drift import (
    IMAGES_PER_FALSE_ALARM,
    WINDOW,
    ScoreMonitor,
    drift_limit,
    ks_distance,
)


def alarms(monitor: ScoreMonitor, scores: np.ndarray) -> int:
    """How many alarms begin while the monitor gets the scores."""
    lines = [monitor.add(score, None) for score in scores.tolist()]
    return sum("no longer" in line for line in lines)


def good_scores(rng: np.random.Generator, count: int) -> np.ndarray:
    return 0.1 * rng.lognormal(0.0, 0.5, count)


def test_the_distance_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for m, n in ((5, 50), (27, 50), (300, 50)):
        # Rounded, so that some scores are equal.
        first, second = (np.sort(good_scores(rng, count).round(2)) for count in (m, n))
        assert ks_distance(first, second) == pytest.approx(ks_2samp(first, second).statistic)


@pytest.mark.parametrize("count", [10, 27, 100, 1000])
def test_good_images_raise_no_more_alarms_than_the_rate(count: int) -> None:
    rng = np.random.default_rng(count)
    repetitions = 6
    count_of_alarms = sum(
        alarms(ScoreMonitor(good_scores(rng, count).tolist()), good_scores(rng, 10_000))
        for _ in range(repetitions)
    )
    assert count_of_alarms <= repetitions * 10_000 / IMAGES_PER_FALSE_ALARM


@pytest.mark.parametrize("count", [10, 27, 100])
def test_the_rate_holds_for_an_unlucky_validation_set(count: int) -> None:
    # Of the sets that are no unluckier than 95 of 100, the one farthest from the true distribution,
    # which is uniform here.
    rng = np.random.default_rng(count)
    sets = np.sort(rng.random((1000, count)), axis=1)
    places = np.arange(count + 1) / count
    distances = np.maximum(places[1:] - sets, sets - places[:-1]).max(axis=1)
    allowed = distances <= kstwo.ppf(0.95, count)
    assert 0.92 < allowed.mean() < 0.98
    unlucky = sets[np.where(allowed, distances, 0).argmax()]
    stream = rng.random(30_000)
    assert alarms(ScoreMonitor(unlucky.tolist()), stream) <= 3
    # A test that takes the validation scores for the true distribution would fail here.
    windows = np.sort(stream.reshape(-1, WINDOW), axis=1)
    naive = kstwo.isf(1e-3, WINDOW)
    assert sum(ks_distance(unlucky, window) > naive for window in windows) > 10


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_a_shift_is_found_within_50_images_and_so_is_its_end(factor: float) -> None:
    rng = np.random.default_rng(1)
    monitor = ScoreMonitor(good_scores(rng, 27).tolist())
    assert alarms(monitor, good_scores(rng, 500)) == 0
    assert monitor.alarm is False
    lines = [monitor.add(score, None) for score in factor * good_scores(rng, 50)]
    (line,) = filter(None, lines)
    assert line.startswith("scores: the last 50 no longer look like the 27 validation scores (dis")
    assert monitor.alarm is True
    lines = [monitor.add(score, None) for score in good_scores(rng, 50)]
    (line,) = filter(None, lines)
    assert line.startswith("scores: the last 50 look like the validation scores again (distance")
    assert monitor.alarm is False


def test_nothing_is_said_before_there_is_enough_to_compare() -> None:
    monitor = ScoreMonitor([0.1] * 20)
    assert alarms(monitor, np.full(WINDOW - 1, 9.0)) == 0
    assert monitor.alarm is None
    assert alarms(monitor, np.full(1, 9.0)) == 1
    for validation_scores in ([], [0.1], [0.1, 0.2]):
        few = ScoreMonitor(validation_scores)
        assert alarms(few, np.full(200, 9.0)) == 0
        assert few.alarm is few.fields()["limit"] is None
    assert drift_limit(4) < 0.9


def test_scores_and_verdicts_are_counted() -> None:
    monitor = ScoreMonitor([0.1, 0.2, 0.2, 0.2])
    assert monitor.summary() == ""
    for score, verdict in ((0.05, False), (0.1, False), (0.15, False), (0.2, False), (0.9, True)):
        monitor.add(score, verdict)
    assert sum(monitor.counts) == 5
    assert monitor.counts[0] == 2
    assert monitor.counts[-1] == 1
    assert monitor.edges == sorted(set(monitor.edges))
    assert monitor.verdicts == {"anomalous": 1, "normal": 4, "no verdict": 0}
    assert monitor.summary().startswith("verdicts: 1 anomalous, 4 normal; scores in the tenths")
    assert monitor.summary().endswith("above them: 1")
    without = ScoreMonitor([])
    without.add(0.5, None)
    assert without.summary() == "verdicts: 1 no verdict"
