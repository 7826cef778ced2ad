"""Random pixels inside an ignore mask change nothing: training, calibration, detection, metrics."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from efficientad_jax import Detector, InputError, detect_tiled, recipes
from efficientad_jax.config import Config, replace
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.evaluation.evaluate_run import evaluate_workdir
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, save_teacher
from tests.helpers.detectors import random_params

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 140, 190
BOX = "10,5,170,130"


def ignore_mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[60:130, 70:160] = mask[:, :12] = mask[7, 20] = True
    return mask


def image(number: int, noise: int = 0) -> np.ndarray:
    """An image whose ignored pixels are those of another random number."""
    pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT // 10, WIDTH // 10, 3))
    pixels = pixels.repeat(10, 0).repeat(10, 1).astype(np.uint8)
    other = np.random.default_rng((number, noise)).integers(0, 256, pixels.shape, np.uint8)
    return np.where(ignore_mask()[..., None], other, pixels)


def write_images(folder: Path, noise: int) -> None:
    for number in range(6):
        name = ("train/good/0", "train/good/1", "validation/good/0", "validation/good/1")
        path = folder / f"{(*name, 'test/good/0', 'test/defect/0')[number]}.png"
        path.parent.mkdir(parents=True) if not path.parent.is_dir() else None
        Image.fromarray(image(number, noise)).save(path)
    defect = np.zeros((HEIGHT, WIDTH), np.uint8)
    defect[50:80, 50:90] = 255
    (folder / "ground_truth/defect").mkdir(parents=True)
    Image.fromarray(defect).save(folder / "ground_truth/defect/0_mask.png")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("data")
    for noise in (1, 2):
        write_images(folder / f"noise{noise}", noise)
    Image.fromarray(~ignore_mask()).save(folder / "mask.png")
    network = PatchDescriptionNetwork("small", 32)
    params = random_params(network, (128, 128))
    save_teacher(folder / "teacher.safetensors", Teacher("small", 32, params, {}))
    changes = {
        "dataset.root": str(folder / "noise1"),
        "dataset.ignore_mask": str(folder / "mask.png"),
        "dataset.region_of_interest": BOX,
        "teacher": str(folder / "teacher.safetensors"),
        "model.input_height": 128,
        "model.input_width": 128,
        "train.steps": 3,
        "train.steps_per_dispatch": 3,
        "calibration.score": "top20",
    }
    return replace(recipes.folder(), changes)


def fit(config: Config, workdir: Path) -> Detector:
    return fit_detector(config, load_configured_dataset(config), workdir)


LOCAL = {"losses.autoencoder": False, "train.crop": 96}
WHOLE = {
    "losses.autoencoder": True,
    "train.crop": 0,
    "calibration.upsample_first": True,
    "calibration.score": "max",
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the run with `LOCAL`, which two tests use: the second finds it done."""
    return tmp_path_factory.mktemp("local") / "first"


@pytest.mark.parametrize("changes", [LOCAL, WHOLE], ids=["no autoencoder", "autoencoder"])
def test_not_one_bit_depends_on_ignored_pixels(changes, config, workdir, tmp_path) -> None:
    config = replace(config, changes)
    first = fit(config, workdir if changes is LOCAL else tmp_path / "first")
    root = config.dataset.root.replace("noise1", "noise2")
    second = fit(replace(config, {"dataset.root": root}), tmp_path / "second")
    leaves = (jax.tree.leaves((d.params, d.calibration)) for d in (first, second))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.validation_scores == second.validation_scores
    assert first.threshold == second.threshold
    assert first.region_rule == second.region_rule
    ways = [first]
    if changes is LOCAL:
        ways.append(lambda pixels: detect_tiled(first, pixels))
    for detect in ways:
        ours, theirs = detect(image(9, 1)), detect(image(9, 2))
        assert ours.score == theirs.score
        assert ours.anomaly_map.shape == (HEIGHT, WIDTH)
        for a, b in zip(ours[1:4], theirs[1:4], strict=True):
            np.testing.assert_array_equal(a, b)
        assert not ours.anomaly_map[:, :10].any()  # outside of the region of interest
        assert not ours.anomaly_map[92:98, 110:120].any()
        # A change outside of the mask is seen.
        changed = image(9, 1)
        changed[30:50, 30:60] = 255
        assert not np.array_equal(detect(changed).anomaly_map, ours.anomaly_map)


def test_metrics_and_report_ignore_the_same_and_other_images_are_refused(config, workdir) -> None:
    config = replace(config, LOCAL)
    detector = fit(config, workdir)
    record = json.loads((workdir / "detector/detector.json").read_text())
    assert record["version"] == 4
    for act in (detector, lambda pixels: detect_tiled(detector, pixels)):
        with pytest.raises(InputError, match="image array: 140x180 pixels, expected the 140x190"):
            act(image(0)[:, :180])
    reports, metrics = [], []
    for noise in (1, 2):
        root = config.dataset.root.replace("noise1", f"noise{noise}")
        metrics.append(evaluate_workdir(workdir, root=root).metrics)
        reports.append((workdir / "report.html").read_bytes())
    assert metrics[0] == metrics[1]
    assert metrics[0].pixel_auroc is not None
    assert reports[0] == reports[1]
    assert b"ignored" in reports[0]

    mask = ~ignore_mask()
    mask[0, 0] = True
    Image.fromarray(mask).save(config.dataset.ignore_mask)
    try:
        with pytest.raises(InputError, match="started with other ignore mask"):
            fit(config, workdir)
        Image.fromarray(mask[:100]).save(config.dataset.ignore_mask)
        no_box = replace(config, {"dataset.region_of_interest": ""})
        with pytest.raises(InputError, match=r"0.png: 140x190 pixels, expected the 100x190"):
            load_configured_dataset(no_box)
    finally:
        Image.fromarray(~ignore_mask()).save(config.dataset.ignore_mask)
