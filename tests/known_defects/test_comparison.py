"""Known defects: recall at thresholds, and the choice among a few ways to compute scores."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax import commands, recipes
from efficientad_jax.commands import set_threshold
from efficientad_jax.config import as_dict
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import Calibration, RawMaps, combine_maps
from efficientad_jax.detection.map_normalization import MapQuantiles
from efficientad_jax.detection.threshold import choose_region_rule
from efficientad_jax.known_defects import comparison
from efficientad_jax.known_defects.comparison import (
    Comparison,
    Inputs,
    candidates,
    compare,
    difference_intervals,
    recalls,
)
from tests.helpers.detectors import SPEC, random_detector
from tests.helpers.images import encoded, uint8_images, write_image

VALIDATION_SCORES = tuple(0.1 + 0.01 * i for i in range(40))


@pytest.fixture(scope="module")
def detector() -> Detector:
    known = random_detector(config=as_dict(recipes.folder()))
    return replace(known, validation_scores=VALIDATION_SCORES).with_threshold(0.05)


def test_recall_is_counted_at_several_thresholds(detector: Detector) -> None:
    scores = np.array([0.2, 0.3, 0.44, 0.465, 0.495, 0.6, 0.7, 0.8])
    rows = recalls(detector, scores)
    # 1 of 40 images cannot resolve a rate below 2.5 %.
    assert [row.false_alarm_rate for row in rows] == [0.05, 0.1, 0.2]
    assert [row.found for row in rows] == [4, 5, 6]
    assert detector.threshold is not None
    assert rows[0].limit == detector.threshold.limit
    # Clopper and Pearson's interval for 4 of 8.
    assert (rows[0].low, rows[0].high) == pytest.approx((0.157, 0.843), abs=1e-3)


def test_weights_are_those_of_the_combined_map() -> None:
    calibration = Calibration(MapQuantiles(0.5, 2.0), MapQuantiles(0.2, 1.0))
    rng = np.random.default_rng(0)
    maps = RawMaps(*(jnp.asarray(rng.random((2, 5, 5), np.float32)) for _ in range(2)))
    _, local, global_ = combine_maps(maps, calibration)
    assert global_ is not None
    first, *others = candidates(calibration)
    assert first.calibration == calibration
    assert {other.local_weight for other in others} == {0.25, 0.5, 0.75}
    assert len({c[:2] for c in (first, *others)}) == len(others) + 1 == 12
    for candidate in others:
        combined, _, _ = combine_maps(maps, candidate.calibration)
        weight = candidate.local_weight
        np.testing.assert_allclose(combined, weight * local + (1 - weight) * global_, atol=1e-6)
        assert candidate.calibration.score_values == candidate.score_values
    without = candidates(calibration._replace(global_=None, score_values=7))
    assert [candidate.score_values for candidate in without] == [7, 1, 5, 20, 100]
    assert len(candidates(calibration._replace(global_=None, upsample_first=True))) == 1


@pytest.mark.slow
def test_the_present_scores_are_those_of_the_detector(detector: Detector) -> None:
    good, defects = uint8_images(4, block=8), uint8_images(2, seed=1)
    inputs = [Inputs(images, [(128, 128)] * len(images)) for images in (good, defects)]
    present, *_ = compare(detector, *inputs, false_alarm_rate=0.2)
    expected = [detection.score for detection in detector.detect_resized(good)]
    assert present.good == pytest.approx(expected, rel=1e-4)
    bad = np.array([detection.score for detection in detector.detect_resized(defects)])
    assert present.auroc == pytest.approx((bad[:, None] > np.array(expected)).mean())
    assert (present.low, present.high) == (0.0, 0.0)


def test_intervals_hold_the_true_difference() -> None:
    rng = np.random.default_rng(3)

    def wins(shift: float, noise: np.ndarray, good: np.ndarray) -> np.ndarray:
        return 1.0 * (noise[:, None] + shift > good)

    # Two scores of the same quality: the interval holds 0 nearly always.
    count = 60
    held = 0
    for _ in range(count):
        first, second = (
            wins(1.5, rng.standard_normal(10), rng.standard_normal(27)) for _ in range(2)
        )
        _, (low, high) = difference_intervals(np.stack([first, second]))
        held += low <= 0 <= high
    assert held >= 0.88 * count
    noise, good = rng.standard_normal(10), rng.standard_normal(27)
    far = np.stack([wins(0.0, noise, good), wins(4.0, noise, good)])
    assert difference_intervals(far)[1][0] > 0


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("efficientad_jax.storage.cache.keep_compiled_programs", lambda: None)
    yield lambda *arguments: commands.main([str(argument) for argument in arguments])
    signal.signal(signal.SIGTERM, before)


def maps_by_mean(networks, params, images, *, upsample_first, ignored, weights) -> RawMaps:
    """Maps with a narrow peak on every image; those of dark images, the defects, are wide."""
    rng = np.random.default_rng(len(images))
    maps = rng.random((len(images), 24, 24), np.float32)
    maps[:, 3, 3] += 5 * rng.random(len(images), np.float32)
    for image, values in zip(images, maps, strict=True):
        if image.mean() < 60:
            values[8:14, 8:14] += 2.0
    return RawMaps(jnp.asarray(maps), None)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for i in range(10):
        black = encoded(np.zeros((12, 18, 3), np.uint8))
        write_image(tmp_path / f"defects/{i}.png").write_bytes(black)
    for i in range(27):
        write_image(tmp_path / f"good/{i:02}.png")
    return tmp_path


@pytest.mark.slow
def test_a_better_score_is_suggested_and_saved(
    detector: Detector, folders: Path, main, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(comparison, "collect_raw_maps", maps_by_mean)
    saved = folders / "detector"
    replace(
        detector, calibration=detector.calibration._replace(score_values=1), metrics={"a": 1}
    ).save(saved)
    before = (saved / "detector.json").read_bytes()
    few = folders / "few"
    few.mkdir()
    for i in range(3):
        (few / f"{i}.png").write_bytes((folders / f"defects/{i}.png").read_bytes())
    good = f"--images={folders / 'good'}"
    assert main("set-threshold", saved, f"--defects={few}", good, "--apply") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("3 defects, 40 validation images\nfalse alarms  threshold  found\n")
    assert "\n         5 %     0.4801  3 of 3; recall " in shown
    assert shown.endswith("suggestion: none, expected at least 5 defects and 5 good images\n")
    assert (saved / "detector.json").read_bytes() == before

    assert main("set-threshold", saved, f"--defects={folders / 'defects'}", good, "--apply") == 0
    shown = capsys.readouterr().out
    assert "suggestion: score top5; its AU-ROC is higher by 0." in shown
    assert shown.splitlines()[-1].startswith("threshold ")
    record = json.loads((saved / "detector.json").read_text())
    assert (record["version"], record["calibration"]["score_values"]) == (3, 5)
    assert (record["metrics"], record["config"]["calibration"]["score"]) == ({}, "top5")
    assert len(record["validation_scores"]) == 27
    assert record["threshold"]["false_alarm_rate"] == 0.05


@pytest.mark.slow
def test_other_weights_choose_another_pixel_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = [np.full((20, 30), 0.01 * i, np.float32) for i in range(40)]
    detector = replace(
        random_detector(SPEC._replace(autoencoder=True)),
        validation_scores=VALIDATION_SCORES,
        region_rule=choose_region_rule(iter(maps), 0.05, 7),
    ).with_threshold(0.05)
    detector.save(tmp_path)
    scores = np.array(VALIDATION_SCORES) / 2
    _, *others = candidates(detector.calibration)
    weighted = next(c for c in others if c.local_weight == 0.75)
    same = next(c for c in others if c.local_weight == 0.5)
    seen = []

    def double(applied: Detector, images: str) -> list[np.ndarray]:
        seen.append((applied.calibration, images))
        return [2 * values for values in maps]

    monkeypatch.setattr(set_threshold, "_maps", double)
    for candidate in (same, weighted):
        better = Comparison(candidate, scores, 3, 0.9, 0.1, 0.2)
        set_threshold._apply(detector, better, tmp_path, images="good")
        applied = Detector.load(tmp_path)
        assert applied.calibration == candidate.calibration
        assert applied.validation_scores == tuple(scores)
        assert applied.threshold is not None
        assert applied.region_rule is not None
        assert detector.region_rule is not None
        factor = 2 if candidate is weighted else 1
        ours, theirs = applied.region_rule, detector.region_rule
        assert ours.threshold.value == pytest.approx(factor * theirs.threshold.value)
        assert ours.smallest_area == 7
    assert seen == [(weighted.calibration, "good")]


@pytest.mark.slow
def test_bad_input_is_one_line(detector: Detector, folders: Path, main, capsys) -> None:
    saved = folders / "detector"
    detector.save(saved)
    write_image(folders / "test/Good/a.png")
    (folders / "empty").mkdir()
    for arguments, named in (
        (
            ("--apply", "--false-alarm-rate=0.1"),
            "--apply: is of a suggestion, expected --defects with it",
        ),
        ((f"--images={folders}", "--false-alarm-rate=0.1"), "--images: is of regions and defects"),
        ((f"--defects={folders / 'nowhere'}",), "nowhere'"),
        ((f"--defects={folders / 'empty'}",), "empty: no images"),
        ((f"--defects={folders / 'test'}",), "test: holds good images, such as"),
        ((f"--defects={folders / 'defects'}",), "give good images as --images=FOLDER"),
        ((f"--defects={folders / 'defects'}", f"--images={folders / 'empty'}"), "no images"),
    ):
        with pytest.raises(SystemExit):
            main("set-threshold", saved, *arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert named in line
