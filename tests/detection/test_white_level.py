"""Images of 16 bits are read with the white level that the detector was trained with."""

import csv
import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.heatmap import Task
from efficientad_jax.detection.predict_files import predict_files
from efficientad_jax.detection.tiling import detect_tiled
from efficientad_jax.serving.application import create_application
from efficientad_jax.watching.watch import Options, watch
from tests.helpers.detectors import random_detector

WHITE_LEVEL = 4095


@pytest.fixture(scope="module")
def detector() -> Detector:
    plain = random_detector()
    return replace(plain, config=plain.config | {"dataset": {"white_level": WHITE_LEVEL}})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, WHITE_LEVEL + 1, (140, 150)).astype(np.uint16)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images/a.png")
    return tmp_path / "images/a.png"


@pytest.mark.slow
def test_every_path_gives_the_score_of_the_8_bit_image(
    detector: Detector, file: Path, tmp_path: Path
) -> None:
    with Image.open(file) as image:
        eight = np.rint(np.asarray(image) / WHITE_LEVEL * 255).astype(np.uint8)
    expected = detector(eight).score
    assert replace(detector, config={})(file).score != expected
    assert detector(file).score == expected

    predict_files(
        detector, [Task(file, None)], tmp_path / "s.csv", low=0.0, high=1.0, complain=print
    )
    (row,) = csv.DictReader((tmp_path / "s.csv").read_text().splitlines())
    assert row["score"] == f"{expected:.6g}"
    assert detect_tiled(detector, file).score == detect_tiled(detector, eight).score

    with TestClient(create_application(detector)) as client:
        answer = client.post("/predict", content=file.read_bytes())
    assert answer.json()["score"] == pytest.approx(expected, rel=1e-6)

    ended = threading.Event()
    watch(
        detector,
        str(file.parent),
        tmp_path / "watched",
        options=Options(settle=0.0, pictures="none"),
        stopped=ended.is_set,
        report=lambda _: ended.set(),
        report_error=lambda _: ended.set(),
    )
    (line,) = (tmp_path / "watched/results.jsonl").read_text().splitlines()
    assert json.loads(line)["score"] == pytest.approx(expected, rel=1e-6)


def test_a_detector_without_the_field_takes_16_bits() -> None:
    assert random_detector().white_level == 65535
