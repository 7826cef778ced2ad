"""The threshold against its definition, simulation and the binomial distribution."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import stats

from configs import elpv, paper
from efficientad_jax import Detector, InputError, choose_threshold, detect_tiled
from efficientad_jax.config import read_config
from efficientad_jax.data.decoding import resize_map
from efficientad_jax.detection.calibration import calibrate
from efficientad_jax.detection.inference import jitted_detect
from efficientad_jax.detection.threshold import (
    MARGIN,
    choose_region_rule,
    count_verdicts,
    is_anomalous,
    summary,
)
from efficientad_jax.networks.model import create_networks
from tests.helpers.detectors import SPEC, random_detector
from tests.helpers.images import picture


def ranks_alarmed(count, rate):
    """How many of the scores 1, 2, ... count the threshold is reached by."""
    threshold = choose_threshold(np.arange(1.0, count + 1), rate)
    return sum(score >= threshold.value for score in range(1, count + 1))


@pytest.mark.parametrize(
    ("count", "rate", "alarmed"),
    # One less than k: the k-th highest itself lies below.
    [(99, 0.1, 9), (98, 0.1, 8), (99, 0.29, 28), (99, 0.07, 6), (1000, 0.01, 9), (9, 0.999, 8)],
)
def test_the_rank_is_the_highest_that_keeps_the_rate(count, rate, alarmed):
    assert ranks_alarmed(count, rate) == alarmed


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_verdicts_are_those_of_conformal_p_values_also_where_scores_are_the_same(rate):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, 60) / 8
    threshold = choose_threshold(scores, rate)
    for new in rng.integers(-1, 14, 200) / 8:
        p_value = (1 + (scores >= new).sum()) / (len(scores) + 1)
        assert (new >= threshold.value) == (p_value <= rate)


@pytest.mark.parametrize(("count", "rate"), [(77, 0.05), (300, 0.01), (30, 0.01)])
def test_the_true_rate_is_in_the_interval_as_often_as_it_says(count, rate):
    rng = np.random.default_rng(1)
    chosen = [choose_threshold(rng.lognormal(size=count), rate) for _ in range(2000)]
    true = stats.lognorm.sf([threshold.value for threshold in chosen], 1)
    inside = [t.low <= rate <= t.high for t, rate in zip(chosen, true, strict=True)]
    # Four standard errors of a part of 2000.
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)
    expected = max(int(rate * (count + 1)), 1) / (count + 1)
    assert true.mean() == pytest.approx(expected, rel=0.1)
    assert expected <= rate or count < 1 / rate


def test_the_bounds_are_those_of_the_binomial_distribution():
    threshold = choose_threshold(np.arange(200.0), 0.05)
    assert (threshold.false_alarm_rate, threshold.images) == (0.05, 200)
    # With a true rate p, k = 10 or more of the 200 lie above the p-quantile with this probability.
    assert stats.binom.sf(9, 200, threshold.low) == pytest.approx(0.025)
    assert stats.binom.sf(9, 200, threshold.high) == pytest.approx(0.975)


def test_too_few_images_are_reported_in_one_line_and_enough_are_not(caplog):
    scores = np.random.default_rng(0).normal(size=100)
    choose_threshold(scores, 0.01)
    assert not caplog.records
    threshold = choose_threshold(scores[:99], 0.01)
    (record,) = caplog.records
    assert "for a false-alarm rate of 1 %: 99, expected at least 100" in record.getMessage()
    assert record.getMessage().isprintable()
    assert (scores[:99] < threshold.value).all()
    # 1 - 0.025 ** (1 / 99)
    assert threshold.high == pytest.approx(1 - 0.025 ** (1 / 99))


def test_a_value_survives_float32():
    scores = np.random.default_rng(0).normal(size=50).astype(np.float32)
    value = choose_threshold(scores.tolist(), 0.1).value
    assert np.float32(value) == value
    assert (scores >= np.float32(value)).sum() == 4


@pytest.mark.parametrize(
    ("scores", "rate", "match"),
    [
        ([], 0.1, "0 validation scores"),
        ([1.0, float("nan")], 0.1, "1 of them finite"),
        ([1.0, 1e300], 0.1, "1 of them finite"),
        ([1.0], 0.0, "false-alarm rate 0.0: expected"),
        ([1.0], 1.0, "false-alarm rate 1.0: expected"),
        ([1.0], float("nan"), "false-alarm rate nan: expected"),
    ],
)
def test_what_no_threshold_can_be_chosen_by_is_refused(scores, rate, match):
    with pytest.raises(InputError, match=match):
        choose_threshold(scores, rate)


def test_verdicts_are_counted():
    threshold = choose_threshold([0.0, 1.0, 2.0], 0.5)  # just above 1
    assert count_verdicts(
        threshold, np.array([0.5, 2.0, 2.0, 1.0, 3.0]), np.array([0, 0, 1, 1, 1])
    ) == (
        *(1, 2),
        *(2, 3),
    )
    assert summary(threshold).startswith("1 for 50 % false alarms; the true rate is 9.4 % to 91 %")


@pytest.fixture(scope="module")
def detector():
    return random_detector()


@pytest.mark.slow
def test_a_detector_keeps_its_threshold_and_can_have_another(detector, tmp_path):
    scores = tuple(np.random.default_rng(0).normal(size=20).astype(np.float32).tolist())
    saved = replace(detector, validation_scores=scores).with_threshold(0.2)
    saved.save(tmp_path / "detector")
    loaded = Detector.load(tmp_path / "detector")
    assert loaded.threshold == saved.threshold == choose_threshold(scores, 0.2)
    assert loaded.validation_scores == scores
    assert loaded.with_threshold(0.5).threshold == choose_threshold(scores, 0.5)
    assert loaded.params is loaded.with_threshold(0.5).params


def test_a_detector_without_scores_has_no_threshold(detector, tmp_path):
    detector.save(tmp_path / "detector")
    file = tmp_path / "detector" / "detector.json"
    record = json.loads(file.read_text())
    assert (record.pop("threshold"), record.pop("validation_scores")) == (None, [])
    file.write_text(json.dumps(record))  # as it was before there were thresholds
    loaded = Detector.load(tmp_path / "detector")
    assert (loaded.threshold, loaded.validation_scores) == (None, ())
    with pytest.raises(InputError, match="holds no scores of validation images"):
        loaded.with_threshold(0.1)


@cache
def calibrated(autoencoder=False, **rules):
    """A detector whose threshold is chosen on these images, for a rate of 20 %, and their maps."""
    spec = SPEC._replace(out_channels=4, autoencoder=autoencoder)
    plain = random_detector(spec)
    images = np.stack([picture(128, 128, seed) for seed in range(13)])
    calibration, scores, maps = calibrate(plain.networks, plain.params, images, **rules)
    detector = replace(plain, calibration=calibration, validation_scores=tuple(scores.tolist()))
    return detector.with_threshold(0.2), images, maps


def scores_by(path, detector, images):
    """Scores of images of the input's size in one of the ways that a detector has."""
    match path.split():
        case ["image"]:
            return [detector(image).score for image in images]
        case ["list"]:
            return [detection.score for detection in detector(list(images))]
        case ["tiles"]:
            return [detect_tiled(detector, image).score for image in images]
        case ["resized", count]:
            batches = np.split(images, range(int(count), len(images), int(count)))
            sizes = [(50, 60)] * int(count)
            return [d.score for b in batches for d in detector.detect_resized(b, sizes[: len(b)])]
        case ["batch", count]:
            batches = np.split(images, range(int(count), len(images), int(count)))
            return np.concatenate([detector.detect(batch).scores for batch in batches])
        case [method]:
            spec = detector.spec
            networks = create_networks(
                spec.size, spec.out_channels, spec.input_size, convolution=method
            )
            return jitted_detect(networks, detector.params, detector.calibration, images).scores


PATHS = ("image", "list", "tiles", "direct", "products")
BATCHES = ("resized 1", "resized 13", "batch 2", "batch 13")
GLOBAL = {"autoencoder": True, "upsample_first": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "path"),
    [({}, path) for path in (*PATHS, *BATCHES)]
    + [(GLOBAL, path) for path in ("image", "tiles", "batch 13")]
    + [({"score_values": 10}, path) for path in ("image", "tiles", "batch 13")],
)
def test_images_that_a_threshold_is_chosen_on_reach_it_no_more_often_than_its_rate(kind, path):
    detector, images, _ = calibrated(**kind)
    threshold = detector.threshold
    # k = floor(0.2 * 14) = 2: the second highest is the lowest that may not reach the limit.
    highest = np.sort(detector.validation_scores)[::-1]
    assert threshold.value == np.nextafter(np.float32(highest[1]), np.float32(np.inf))
    scores = np.asarray(scores_by(path, detector, images), np.float64)
    # Rounding makes less of a difference than the margin, and images more.
    assert np.abs(scores - detector.validation_scores).max() < 0.5 * threshold.margin
    assert highest[0] - highest[1] > 2 * threshold.margin
    assert [is_anomalous(threshold, score) for score in scores.tolist()].count(True) == 1
    counts = count_verdicts(threshold, scores, np.zeros(len(scores), int))
    assert counts.false_alarms == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, GLOBAL])
def test_images_that_a_pixel_threshold_is_chosen_on_have_regions_no_more_often_than_its_rate(kind):
    detector, images, maps = calibrated(**kind)
    sizes = [(90 + 10 * i, 150) for i in range(len(images))]
    own = [resize_map(each, size) for each, size in zip(maps, sizes, strict=True)]
    for area in (1, 30):
        rule = choose_region_rule(own, 0.2, area)
        found = replace(detector, region_rule=rule).detect_resized(images, sizes)
        for detection, expected in zip(found, own, strict=True):
            np.testing.assert_allclose(detection.anomaly_map, expected, atol=2e-5)
        assert [bool(detection.regions) for detection in found].count(True) == 1


@pytest.mark.slow
def test_the_margin_is_stored_apart_and_earlier_detectors_have_none(tmp_path):
    detector, *_ = calibrated()
    assert detector.threshold.margin == pytest.approx(MARGIN * (1 + detector.threshold.value))
    assert detector.threshold.limit == detector.threshold.value + detector.threshold.margin
    detector.save(tmp_path / "detector")
    assert Detector.load(tmp_path / "detector").threshold == detector.threshold
    file = tmp_path / "detector" / "detector.json"
    record = json.loads(file.read_text())
    # The fields that earlier versions read, and no others.
    assert list(record["threshold"]) == ["value", "false_alarm_rate", "low", "high", "images"]
    assert record["threshold"]["value"] == detector.threshold.value
    assert record.pop("threshold_margin") == detector.threshold.margin
    file.write_text(json.dumps(record))
    earlier = Detector.load(tmp_path / "detector").threshold
    assert earlier == detector.threshold._replace(margin=0.0)
    assert is_anomalous(earlier, earlier.value)
    for margin in (-1.0, float("nan"), "0", None, 1):
        file.write_text(json.dumps(record | {"threshold_margin": margin}))
        with pytest.raises(InputError, match="detector"):
            Detector.load(tmp_path / "detector")


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_out_of_range_is_refused_before_training(rate):
    config = elpv.get_config()
    read_config(config)
    config.calibration.false_alarm_rate = rate
    with pytest.raises(InputError, match=r"config\.calibration\.false_alarm_rate = "):
        read_config(config)


def test_a_configuration_from_before_there_was_a_rate_is_taken():
    config = paper.get_config().to_dict()
    del config["calibration"]["false_alarm_rate"]
    assert read_config(config).calibration.false_alarm_rate is None
