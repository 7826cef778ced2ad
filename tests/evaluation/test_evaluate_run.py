"""An evaluation: its files, what is returned, and what is printed of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from efficientad_jax.config import as_dict
from efficientad_jax.data.loading import Dataset, ImageSet
from efficientad_jax.detection.detector import Detector
from efficientad_jax.evaluation.evaluate_run import evaluate_workdir, evaluation_summary
from efficientad_jax.recipes import folder as folder_recipe
from efficientad_jax.runs.workdir import Workdir
from tests.helpers.detectors import random_detector, with_regions

SIDE = 128
GENERATOR = np.random.default_rng(0)


def image_set(labels: list[int]) -> ImageSet:
    count = len(labels)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[40:60, 30:50] = True
    return ImageSet(
        GENERATOR.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8),
        np.array(labels, np.int64),
        [f"{i}.png" for i in range(count)],
        ["crack" if label else "good" for label in labels],
        [mask if label else None for label in labels],
        [(SIDE, SIDE)] * count,
    )


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    detector = random_detector(config=as_dict(folder_recipe()))
    detector = replace(detector, validation_scores=(0.1, 0.2, 0.3))
    detector.with_threshold(0.5).save(Workdir(tmp_path).detector)
    return tmp_path


@pytest.mark.slow
def test_the_files_hold_what_is_returned(workdir: Path) -> None:
    dataset = Dataset(image_set([0] * 4), image_set([0] * 2), image_set([0, 0, 1, 1]))
    evaluation = evaluate_workdir(workdir, dataset)
    files = Workdir(workdir)
    assert json.loads(files.metrics.read_text()) == evaluation.as_dict()
    assert Detector.load(files.detector).metrics == evaluation.metrics.as_dict()
    assert evaluation.report == files.report
    assert "EfficientAD-S on folder" in files.report.read_text()
    assert set(evaluation.baselines) == {
        "nearest neighbors",
        "PCA reconstruction",
        "mean brightness",
    }
    assert evaluation.verdicts is not None
    assert (evaluation.verdicts.normal, evaluation.verdicts.anomalous) == (2, 2)
    assert evaluation.metrics.au_pro is not None
    text = evaluation_summary(evaluation)
    assert f"AU-PRO (FPR < 0.3)   {evaluation.metrics.au_pro:.4f}\n" in text
    assert f"{evaluation.verdicts.found} of 2 anomalous test images" in text
    assert text.endswith(f"report: {files.report}")


@pytest.mark.slow
def test_regions_are_counted_where_there_is_a_pixel_threshold(workdir: Path) -> None:
    detector = Detector.load(Workdir(workdir).detector)
    dataset = Dataset(image_set([0] * 4), image_set([0] * 2), image_set([0, 0, 1, 1]))
    plain = evaluate_workdir(workdir, dataset)
    assert plain.regions is None
    assert "regions" not in plain.as_dict()
    assert "pixel threshold" not in evaluation_summary(plain)
    found = detector.detect_resized(dataset.test.images, dataset.test.sizes)
    peaks = [float(detection.anomaly_map.max()) for detection in found]
    with_regions(detector, 0.9 * min(peaks)).save(Workdir(workdir).detector)
    evaluation = evaluate_workdir(workdir, dataset)
    counts = evaluation.regions
    assert counts is not None
    assert (counts.defects, counts.good_images, counts.good_images_with_regions) == (2, 2, 2)
    stored = json.loads(Workdir(workdir).metrics.read_text())["regions"]
    assert stored["found"] == counts.found
    assert stored["false_regions_per_good_image"] == counts.false_regions / 2 >= 1
    text = evaluation_summary(evaluation)
    assert f"{counts.found} of 2 defects in masks" in text
    assert f"{counts.false_regions}, in 2 of 2 normal test images, 100 %" in text
    assert "Boxes of" in Workdir(workdir).report.read_text()


def test_without_test_images_nothing_is_written(workdir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    dataset = Dataset(image_set([0] * 4), image_set([0] * 2), image_set([]))
    evaluation = evaluate_workdir(workdir, dataset)
    assert evaluation.report is evaluation.verdicts is evaluation.metrics.image_auroc is None
    assert "no test images to evaluate" in evaluation_summary(evaluation)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
