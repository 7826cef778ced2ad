"""The commands as a user runs them, on a small folder in MVTec AD's layout."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from efficientad_jax import choose_threshold, detect_tiled
from efficientad_jax.config import read_config
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.evaluation.evaluate_run import evaluate_workdir, evaluation_summary
from tests.helpers.command import command, efficientad

pytestmark = pytest.mark.slow

SMALL = (
    "--config.model.input_height=128",
    "--config.model.input_width=128",
    "--config.train.steps=2",
    "--config.train.steps_per_dispatch=2",
    "--config.losses.autoencoder=True",
)


def write_images(folder, count, seed=0, blot=False):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        height, width = rng.integers(100, 160, 2)
        pixels = rng.integers(90, 130, (height, width), np.uint8)
        if blot:
            pixels[40:70, 40:70] = 255
        Image.fromarray(pixels).save(folder / f"{i:03}.png")


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "data/train/good", 4)
    write_images(tmp_path / "data/test/good", 2, seed=1)
    write_images(tmp_path / "data/test/blot", 2, seed=2, blot=True)
    return tmp_path / "data"


def train(folder, workdir, *more):
    return command(
        "train",
        "--config=configs/folder.py",
        f"--config.dataset.root={folder}",
        f"--config.dataset.data_dir={workdir.parent / 'tfds'}",
        f"--workdir={workdir}",
        *more,
    )


def assert_one_line_error(result, *parts):
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in line
    assert "Traceback" not in result.stderr


def test_train_evaluate_predict(folder, tmp_path):  # long: each command needs the files of the last
    workdir = tmp_path / "run"
    photographs = tmp_path / "photographs"
    write_images(photographs, 2, seed=3)
    penalty = ("--config.losses.penalty=True", f"--config.pretraining_images={photographs}")
    result = train(folder, workdir, *SMALL, *penalty)
    assert result.returncode == 0, result.stderr
    assert "loss=" in result.stderr
    assert "too few validation images for a false-alarm rate of 1 %: 1, expected" in result.stderr
    assert list((workdir / "tensorboard").iterdir())

    result = command("evaluate", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert "image AU-ROC" in result.stdout
    assert "PCA reconstruction" in result.stdout
    metrics = json.loads((workdir / "metrics.json").read_text())
    figures, threshold = metrics["detector"], metrics["threshold"]
    record = json.loads((workdir / "detector" / "detector.json").read_text())
    assert record["metrics"] == figures
    assert record["threshold"].items() <= threshold.items()
    data = re.search(r'id="data">(.*?)</script>', (workdir / "report.html").read_text())
    assert data is not None
    shown = json.loads(data[1])
    # The report's threshold has the margin for rounding, as all verdicts do.
    limit = threshold["value"] + record["threshold_margin"]
    assert shown["start"] == limit
    for kind, counted, of in (
        ("good", "false_alarms", "normal"),
        ("anomalous", "found", "anomalous"),
    ):
        assert threshold[counted] == sum(score >= limit for score in shown[kind])
        assert f"{threshold[counted]} of {threshold[of]} {of} test images" in result.stdout
    assert "AU-PRO (FPR < 0.3)   not defined (no test image has a mask" in result.stdout
    assert figures["au_pro"] is figures["au_spro"] is None
    assert figures["good_images"] == figures["anomalous_images"] == 2
    assert (workdir / "report.html").stat().st_size > 10_000

    result = command("compare_dtypes", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert f"float32    image AU-ROC {figures['image_auroc']:.4f}, pixel" in result.stdout
    assert "bfloat16   image AU-ROC " in result.stdout
    (difference,) = re.findall(r"difference of a score: (\d\.\d+)", result.stdout)
    assert 0 < float(difference) < 0.5
    assert "verdicts that differ: " in result.stdout

    (folder / "test" / "blot" / "broken.png").write_bytes(b"no image")
    output = tmp_path / "predicted"
    result = efficientad("predict", workdir / "detector", f"--output={output}", folder / "test")
    assert_one_line_error(result, "broken.png")
    assert result.returncode == 1
    with (output / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row in rows:
        assert np.isfinite(float(row["score"]))
        assert row["anomalous"] == str(int(float(row["score"]) >= limit))
        with Image.open(row["heatmap"]) as picture, Image.open(row["image"]) as image:
            assert picture.height >= image.height
    assert not (output / "blot" / "broken_heatmap.png").exists()

    good = folder / "test" / "good"
    for kind, of in (
        ("hard_features", f"--workdir={workdir}"),
        ("maps", f"--detector={workdir / 'detector'}"),
    ):
        figure = tmp_path / f"{kind}.pdf"
        result = command("figures", kind, of, f"--output={figure}", good)
        assert result.returncode == 0, result.stderr
        assert figure.read_bytes().startswith(b"%PDF")

    # Without --output the pictures lie next to the images, and are not taken for images.
    for _ in range(2):
        result = efficientad(
            "predict",
            workdir / "detector",
            f"--scores={tmp_path / 'again.csv'}",
            folder / "test" / "good",
        )
        assert result.returncode == 0, result.stderr
        names = sorted(path.name for path in (folder / "test" / "good").iterdir())
        assert names == ["000.png", "000_heatmap.png", "001.png", "001_heatmap.png"]
    again = list(csv.DictReader((tmp_path / "again.csv").read_text().splitlines()))
    good = [row["score"] for row in rows if "good" in row["image"]]
    assert [row["score"] for row in again] == good

    result = efficientad("set-threshold", workdir / "detector", "--false-alarm-rate=0.5")
    assert result.returncode == 0, result.stderr
    assert "for 50 % false alarms" in result.stdout
    again = json.loads((workdir / "detector" / "detector.json").read_text())
    assert again["threshold"]["false_alarm_rate"] == 0.5
    assert {**again, "threshold": None} == {**record, "threshold": None}


def test_only_good_images_train_and_predict(tmp_path):
    write_images(tmp_path / "good", 3)
    workdir = tmp_path / "run"
    result = train(tmp_path / "good", workdir, *SMALL, "--config.losses.autoencoder=False")
    assert result.returncode == 0, result.stderr
    before = sorted(path for path in workdir.rglob("*") if path.is_file())
    evaluation = evaluate_workdir(workdir)
    assert evaluation.metrics.image_auroc is evaluation.report is None
    assert evaluation_summary(evaluation) == (
        f"no test images to evaluate: {tmp_path / 'good'} holds only good images"
    )
    assert sorted(path for path in workdir.rglob("*") if path.is_file()) == before
    detector = Detector.load(workdir / "detector")
    detection = detector(tmp_path / "good/000.png")
    assert np.isfinite(detection.score)
    # The threshold is chosen by the scores that the detector gives.
    validation = load_configured_dataset(read_config(detector.config)).validation
    found = detector.detect_resized(validation.images, validation.sizes)
    assert detector.validation_scores == pytest.approx([one.score for one in found], rel=1e-4)
    assert detector.threshold == choose_threshold(detector.validation_scores, 0.01)

    result = efficientad(
        "predict",
        workdir / "detector",
        f"--output={tmp_path / 'tiled'}",
        "--false-alarm-rate=0.5",
        "--tile",
        "--overlap=40",
        tmp_path / "good",
    )
    assert result.returncode == 0, result.stderr
    assert "these rates are those of one tile" in result.stdout
    rows = list(csv.DictReader((tmp_path / "tiled/scores.csv").read_text().splitlines()))
    tiled = [detect_tiled(detector, row["image"], 40).score for row in rows]
    assert [float(row["score"]) for row in rows] == pytest.approx(tiled, rel=1e-4)
    result = efficientad("predict", workdir / "detector", "--overlap=40", "x.png")
    assert_one_line_error(result, "--overlap=40", "expected --tile")


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--config.catgory=poly", ("--config.catgory=poly: no such field", "'category'")),
        ("--config.train.stepz=3", ("--config.train.stepz=3: no such field", "'steps'")),
        ("--config.trian.steps=3", ("--config.trian.steps=3: no such field", "'train'")),
        ("--config.train.steps=many", ("--config.train.steps=many", "int")),
        ("--config=nowhere.py", ("--config", "No such file", "nowhere.py")),
        ("--wrokdir=a", ("'wrokdir'", "workdir")),
        ("poly", ("unexpected argument 'poly'",)),
    ],
)
def test_a_flag_that_cannot_be_used_is_one_line(tmp_path, flag, parts):
    result = command(
        "train",
        "--config=configs/elpv.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.train.steps=5",
        flag,
    )
    assert_one_line_error(result, *parts)
    assert len(result.stderr.splitlines()) == 1
    assert result.returncode == 2
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_file_of_a_configuration_is_no_mistake_in_a_flag(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs import elpv\n"
        "def get_config():\n"
        "    config = elpv.get_config()\n"
        "    return config.no_such_field\n"
    )
    result = command("train", f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 1
    assert f'File "{file}", line 4' in result.stderr


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("--config.model.input_height=100", ("config.model.input_height = 100", "multiple of 32")),
        ("--config.dataset.name=cats", ("dataset 'cats'", "elpv, folder")),
        ("--config.category=bottle", ("category 'bottle'",)),
        ("--config.dataset.root=nowhere", ("nowhere", "no such folder")),
        ("--config.teacher=nowhere.safetensors", ("teacher nowhere.safetensors",)),
        ("--config.losses.penalty=True", ("config.losses.penalty", "config.pretraining_images")),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(folder, tmp_path, argument, parts):
    assert_one_line_error(train(folder, tmp_path / "run", argument), *parts)
    assert not (tmp_path / "run").exists()


def test_a_truncated_training_image_is_named_and_nothing_left(folder, tmp_path):
    broken = folder / "train" / "good" / "002.png"
    broken.write_bytes(broken.read_bytes()[:-500])
    assert_one_line_error(train(folder, tmp_path / "run"), "002.png")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "tfds").exists()


def test_a_folder_without_a_detector_is_refused(tmp_path):
    assert_one_line_error(command("evaluate", f"--workdir={tmp_path}"), "no detector.json")
    result = efficientad("predict", tmp_path, "x.png")
    assert_one_line_error(result, "no detector.json")
