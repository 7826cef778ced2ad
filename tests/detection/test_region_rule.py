"""The pixel threshold: its choice, its place in the detector and its change by a command."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy import ndimage, stats

from efficientad_jax import Detector, InputError, choose_threshold, detect_tiled
from efficientad_jax.commands import set_threshold
from efficientad_jax.commands.command_line import Parser
from efficientad_jax.detection.regions.components import find_regions
from efficientad_jax.detection.threshold import choose_region_rule, region_summary
from tests.helpers.detectors import random_detector, with_regions
from tests.helpers.images import encoded, picture


def smooth_maps(count, seed=0, size=(16, 16)):
    noise = np.random.default_rng(seed).normal(size=(count, *size))
    return list(ndimage.gaussian_filter(noise, (0, 1, 1)).astype(np.float32))


@pytest.mark.parametrize("area", [1, 12])
def test_so_many_good_images_have_a_region_as_the_rule_of_scores_allows(area):
    maps = smooth_maps(99)
    rule = choose_region_rule(maps, 0.1, area)
    assert rule.threshold == choose_threshold(rule.validation_scores, 0.1)
    # One less than k = 0.1 * 100: the k-th highest itself lies below.
    assert sum(bool(find_regions(m, rule.threshold.value, area)) for m in maps) == 9
    assert sum(bool(rule.find(m)) for m in maps) <= 9
    assert rule.with_rate(0.3).threshold == choose_threshold(rule.validation_scores, 0.3)


@pytest.mark.parametrize("area", [1, 12])
def test_the_mean_rate_of_new_images_is_the_target(area):
    chosen = [choose_region_rule(smooth_maps(39, seed), 0.1, area) for seed in range(12)]
    new = [choose_region_rule([m], 0.5, area).validation_scores[0] for m in smooth_maps(400, 99)]
    rates = [np.mean(np.array(new) >= rule.threshold.value) for rule in chosen]
    # Each of the 12 rates has the distribution Beta(4, 36).
    assert np.mean(rates) == pytest.approx(0.1, abs=4 * stats.beta(4, 36).std() / 12**0.5)


def test_a_larger_smallest_area_lowers_the_pixel_threshold():
    maps = smooth_maps(50)
    limits = [choose_region_rule(maps, 0.1, area).threshold.limit for area in (1, 5, 25)]
    assert limits == sorted(limits, reverse=True)
    assert len(set(limits)) == 3


def test_what_no_rule_can_be_chosen_by_is_refused():
    maps = smooth_maps(3)
    for rate in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="expected one above 0 and below 1"):
            choose_region_rule(maps, rate, 1)
    with pytest.raises(InputError, match="0 validation scores"):
        choose_region_rule([], 0.1, 1)


def test_too_few_images_are_reported_once(caplog):
    maps = smooth_maps(9)
    choose_region_rule(maps, 0.1, 1, reports_few_images=False)
    assert not caplog.records
    rule = choose_region_rule(maps, 0.1, 4)
    (record,) = caplog.records
    assert record.getMessage().startswith("pixel threshold: too few validation images")
    assert "regions of 4 pixels or more in 10 % of the good images" in region_summary(rule)


@pytest.fixture(scope="module")
def detector():
    return random_detector()


@pytest.mark.slow
def test_a_detector_keeps_its_rule(detector, tmp_path):
    maps = [detector(picture(seed=seed)).anomaly_map for seed in range(6)]
    saved = replace(detector, region_rule=choose_region_rule(maps, 0.2, 5))
    saved.save(tmp_path / "detector")
    loaded = Detector.load(tmp_path / "detector")
    assert loaded.region_rule == saved.region_rule
    assert loaded.with_region_rate(0.5).region_rule == choose_region_rule(maps, 0.5, 5)
    assert loaded.params is loaded.with_region_rate(0.5).params
    record = json.loads((tmp_path / "detector" / "detector.json").read_text())
    assert record["version"] == 2  # earlier versions read it, and leave the rule out


def test_a_detector_of_an_earlier_version_has_no_regions_and_says_how_to_get_them(
    detector, tmp_path
):
    detector.save(tmp_path / "detector")
    file = tmp_path / "detector" / "detector.json"
    record = json.loads(file.read_text())
    assert record.pop("regions") is None
    file.write_text(json.dumps(record))
    loaded = Detector.load(tmp_path / "detector")
    assert loaded.region_rule is None
    pixels = picture()
    detection = loaded(pixels)
    np.testing.assert_array_equal(detection.anomaly_map, detector(pixels).anomaly_map)
    for refused in (lambda: detection.regions, partial(loaded.with_region_rate, 0.1)):
        with pytest.raises(InputError, match=r"has no pixel threshold .*set-threshold") as error:
            refused()
        assert str(error.value).isprintable()


def test_a_detection_finds_regions_at_the_size_of_its_image_only(detector):
    pixels = picture(100, 170, seed=3)
    anomaly_map = detector(pixels).anomaly_map
    threshold = float(np.quantile(anomaly_map, 0.9))
    with_rule = with_regions(detector, threshold, 15)
    detection = with_rule(pixels)
    assert detection.regions == find_regions(anomaly_map, threshold, 15) != ()
    polygons = detection.find_regions(polygons=True)
    assert [replace(region, polygon=None) for region in polygons] == list(detection.regions)
    assert all(region.polygon for region in polygons)
    tiled = detect_tiled(with_rule, picture(150, 140))
    assert tiled.regions == find_regions(tiled.anomaly_map, threshold, 15) != ()
    (resized,) = with_rule.detect_resized(np.zeros((1, 128, 128, 3), np.uint8))
    with pytest.raises(InputError, match="no pixel threshold"):
        _ = resized.regions


@pytest.fixture
def changed(tmp_path, capsys):
    """Runs `set-threshold` in this process; the detector that it leaves, and what it printed."""

    def changed(*arguments):
        parser = Parser()
        set_threshold.add_arguments(parser)
        words = [str(argument) for argument in (tmp_path / "detector", *arguments)]
        assert set_threshold.run(parser.parse_args(words)) == 0
        return Detector.load(tmp_path / "detector"), capsys.readouterr().out

    return changed


@pytest.mark.slow
def test_the_command_chooses_a_rule_from_images_and_another_rate_from_scores(
    changed, detector, tmp_path
):
    detector.save(tmp_path / "detector")
    folder = tmp_path / "good"
    folder.mkdir()
    pixels = [picture(60 + 10 * seed, 80, seed) for seed in range(6)]
    for i, each in enumerate(pixels):
        (folder / f"{i}.png").write_bytes(encoded(each))
    maps = [detector(each).anomaly_map for each in pixels]
    rate = "--region-false-positive-rate=0.4"
    found, printed = changed(rate, f"--images={folder}", "--smallest-region=12")
    assert found.region_rule == choose_region_rule(maps, 0.4, 12)
    assert found.threshold is None
    assert printed.startswith("pixel threshold ")
    found, _ = changed("--region-false-positive-rate=0.7")
    assert found.region_rule == choose_region_rule(maps, 0.7, 12)
    # The detector has no dataset whose validation images could be used.
    with pytest.raises(InputError, match="configuration"):
        changed(rate, "--smallest-region=3")


def test_the_command_says_what_it_needs(changed, detector, tmp_path):
    detector.save(tmp_path / "detector")
    for arguments, named in (
        ((), "--region-false-positive-rate, --defects, --puad: none is given"),
        (("--false-alarm-rate=0.1", "--images=a"), "--images: is of regions"),
        (("--false-alarm-rate=0.1", "--smallest-region=3"), "--smallest-region: is of regions"),
        (("--region-false-positive-rate=0.1", "--smallest-region=0"), "0: expected 1 to"),
        (("--region-false-positive-rate=0.1", f"--images={tmp_path}/no"), "no such folder"),
        (("--region-false-positive-rate=2", f"--images={tmp_path}/no"), "2.0: expected"),
    ):
        with pytest.raises(InputError, match=named) as error:
            changed(*arguments)
        assert str(error.value).isprintable()
