"""The alarm on images that no longer look like the validation images."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from efficientad_jax.data.decoding import decode_image
from efficientad_jax.monitoring.drift import (
    IMAGES_PER_FALSE_ALARM,
    WINDOW,
    DriftMonitor,
    mann_whitney_shift,
)

# The brightness where a test is about scores: without validation values it gives no alarm.
ANY = 0.0


def alarms(monitor: DriftMonitor, scores: np.ndarray) -> int:
    """How many alarms begin while the monitor gets the scores."""
    lines = [line for score in scores.tolist() for line in monitor.add(score, None, ANY)]
    return sum("no longer" in line for line in lines)


def good_scores(rng: np.random.Generator, count: int) -> np.ndarray:
    return 0.1 * rng.lognormal(0.0, 0.5, count)


def test_the_shift_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for m, n in ((5, 50), (27, 50), (300, 200)):
        # Rounded, so that some scores are equal.
        reference, recent = (good_scores(rng, count).round(2) for count in (m, n))
        expected = mannwhitneyu(recent, reference).statistic / (m * n) - 0.5
        assert mann_whitney_shift(np.sort(reference), recent) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("count", [27, 100, 1000])
def test_good_images_raise_no_more_alarms_than_the_rate(count: int) -> None:
    rng = np.random.default_rng(count)
    repetitions = 4
    count_of_alarms = sum(
        alarms(DriftMonitor(good_scores(rng, count).tolist()), good_scores(rng, 10_000))
        for _ in range(repetitions)
    )
    assert count_of_alarms <= repetitions * 10_000 / IMAGES_PER_FALSE_ALARM


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, 27, 100])
def test_the_rate_holds_for_an_unlucky_validation_set(count: int) -> None:
    # Of the sets that are no unluckier than 95 of 100, the one with the lowest scores. The true
    # distribution is uniform.
    rng = np.random.default_rng(count)
    sets = np.sort(rng.random((1000, count)), axis=1)
    lowest = np.argsort(sets.mean(axis=1))[25]
    unlucky = sets[lowest]
    stream = rng.random(30_000)
    assert alarms(DriftMonitor(unlucky.tolist()), stream) <= 3
    # A test that takes the validation scores for the true distribution would fail here.
    shifts = [mann_whitney_shift(unlucky, window) for window in stream.reshape(-1, WINDOW)]
    naive = norm.isf(5e-4) / np.sqrt(12 * WINDOW)
    assert sum(shift > naive for shift in shifts) > 5


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_a_shift_is_found_within_50_images_and_so_is_its_end(factor: float) -> None:
    rng = np.random.default_rng(1)
    monitor = DriftMonitor(good_scores(rng, 27).tolist())
    assert alarms(monitor, good_scores(rng, 500)) == 0
    assert monitor.alarm is False
    (line,) = [
        line for score in factor * good_scores(rng, 50) for line in monitor.add(score, None, ANY)
    ]
    assert line.startswith("the score: no longer like that of the 27 validation images (shift ")
    assert monitor.alarm is True
    assert monitor.scores.shift is not None
    assert (monitor.scores.shift > 0) == (factor > 1)
    (line,) = [line for score in good_scores(rng, 50) for line in monitor.add(score, None, ANY)]
    assert line.startswith("the score: again like that of the 27 validation images (shift ")
    assert monitor.alarm is False


def test_nothing_is_said_before_there_is_enough_to_compare() -> None:
    monitor = DriftMonitor([0.1] * 20)
    assert alarms(monitor, np.full(WINDOW - 1, 9.0)) == 0
    assert monitor.alarm is None
    assert alarms(monitor, np.full(1, 9.0)) == 1
    for validation_scores in ([], [0.1], [0.1, 0.2, 0.3]):
        few = DriftMonitor(validation_scores)
        assert alarms(few, np.full(200, 9.0)) == 0
        assert few.alarm is few.fields()["limit"] is None
    assert alarms(DriftMonitor([0.1, 0.2, 0.3, 0.4]), np.full(50, 9.0)) == 1


def test_scores_and_verdicts_are_counted() -> None:
    monitor = DriftMonitor([0.1, 0.2, 0.2, 0.2])
    assert monitor.summary() == ""
    for score, verdict in ((0.05, False), (0.1, False), (0.15, False), (0.2, False), (0.9, True)):
        monitor.add(score, verdict, ANY)
    assert sum(monitor.counts) == 5
    assert monitor.counts[0] == 2
    assert monitor.counts[-1] == 1
    assert monitor.edges == sorted(set(monitor.edges))
    assert monitor.verdicts == {"anomalous": 1, "normal": 4, "no verdict": 0}
    assert monitor.summary().startswith("verdicts: 1 anomalous, 4 normal; scores in the tenths")
    assert monitor.summary().endswith("above them: 1")
    without = DriftMonitor([])
    without.add(0.5, None, ANY)
    assert without.summary() == "verdicts: 1 no verdict"


def test_brightness_is_tested_next_to_scores_and_either_gives_the_alarm() -> None:
    rng = np.random.default_rng(0)
    known = good_scores(rng, 27).tolist()
    monitor = DriftMonitor(known, rng.normal(100, 4, 27).tolist())
    for _ in range(200):
        assert monitor.add(rng.choice(known), None, rng.normal(100, 4)) == []
    assert monitor.alarm is False
    lines = [line for _ in range(50) for line in monitor.add(rng.choice(known), None, 110.0)]
    (line,) = lines
    assert line.startswith(
        "the brightness: no longer like that of the 27 validation images (shift +"
    )
    assert (monitor.scores.alarm, monitor.brightness.alarm, monitor.alarm) == (False, True, True)
    fields = monitor.fields()
    assert fields["alarm"] is True
    assert abs(fields["shift"]) < fields["limit"]
    assert fields["brightness_shift"] > fields["brightness_limit"]


@pytest.mark.slow
def test_pills_that_are_a_tenth_brighter_or_darker_are_noticed_within_50(data_root: Path) -> None:
    good, test = (
        [decode_image(file)[::4, ::4] for file in sorted((data_root / folder).iterdir())]
        for folder in ("mvtec_pill/train/good", "mvtec_pill/test/good")
    )
    known = np.array([image.mean() for image in good])
    # Each draws the brightness of a good test image, times a factor.
    draws = {f: np.array([(i * f).clip(0, 255).mean() for i in test]) for f in (0.9, 1.0, 1.1)}
    false_alarms = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        monitor = DriftMonitor([], rng.choice(known, 27, replace=False).tolist())
        lines = [x for v in rng.choice(draws[1.0], 10_000) for x in monitor.add(ANY, None, v)]
        false_alarms += sum("no longer" in line for line in lines)
        for factor in (0.9, 1.1):
            for value in rng.choice(draws[1.0], 60):
                monitor.add(ANY, None, value)
            assert monitor.alarm is False
            lines = [x for v in rng.choice(draws[factor], 50) for x in monitor.add(ANY, None, v)]
            assert len(lines) == 1
            assert (monitor.brightness.shift or 0) * (factor - 1) > 0
    assert false_alarms <= 20 * 10_000 / IMAGES_PER_FALSE_ALARM
