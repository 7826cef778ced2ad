"""Images that are padded or cut into tiles, and an input with their proportions."""

import csv
import json
from dataclasses import replace as replaced
from pathlib import Path

import httpx2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from efficientad_jax import Detector, InputError, detect_tiled, recipes
from efficientad_jax.config import Config, ModelConfig, replace
from efficientad_jax.data.framing import FILL, Framing, place_in_input
from efficientad_jax.data.given_images import load_given_images
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.heatmap import plan_pictures
from efficientad_jax.detection.predict_files import predict_files
from efficientad_jax.evaluation.evaluate_run import evaluate_workdir
from efficientad_jax.export.properties import check_exportable
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.fitting.inputs import suited_to
from efficientad_jax.fitting.proxy import auroc_by_kind, draw_proxy_images, split_validation
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, save_teacher
from efficientad_jax.runs.workdir import Workdir, as_started
from efficientad_jax.scheduling.train_and_evaluate import finished, train_and_evaluate
from efficientad_jax.serving.application import create_application
from efficientad_jax.training.batch import TrainData, random_crops
from tests.helpers.detectors import random_detector, random_params
from tests.helpers.images import encoded, picture
from tests.helpers.live_server import running

SIZES = [(150, 300), (140, 280), (100, 220), (150, 300), (130, 250), (150, 300), (160, 290)]


def image(number: int) -> np.ndarray:
    height, width = SIZES[number]
    small = np.random.default_rng(number).integers(0, 256, (height // 10, width // 10, 3))
    return small.repeat(10, 0).repeat(10, 1).astype(np.uint8)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("data")
    names = [f"train/good/{i}" for i in range(3)] + [f"validation/good/{i}" for i in range(2)]
    for number, name in enumerate([*names, "test/good/0", "test/defect/0"]):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(number)).save(path)
    mask = np.zeros(SIZES[6], np.uint8)
    mask[50:90, 40:120] = 255
    (folder / "ground_truth/defect").mkdir(parents=True)
    Image.fromarray(mask).save(folder / "ground_truth/defect/0_mask.png")
    network = PatchDescriptionNetwork("small", 32)
    params = random_params(network, (128, 128))
    save_teacher(folder / "teacher.safetensors", Teacher("small", 32, params, {}))
    changes = {
        "dataset.root": str(folder),
        "teacher": str(folder / "teacher.safetensors"),
        "model.input_size": "128x128",
        "train.steps": 2,
        "train.steps_per_dispatch": 2,
    }
    return replace(recipes.folder(), changes)


def fit(config: Config, workdir: Path) -> Detector:
    config = as_started(config, workdir)
    return fit_detector(config, load_configured_dataset(config), workdir)


def assert_every_path_agrees(detector: Detector, tmp_path: Path, expected: list) -> None:
    """The scores and maps of `expected`, of the images 5 and 6, in predict and serve."""
    folder = tmp_path / "given"
    folder.mkdir()
    for number in (5, 6):
        (folder / f"{number}.png").write_bytes(encoded(image(number)))
    tasks, _ = plan_pictures([folder], None, pytest.fail, draws_pictures=False)
    predict_files(detector, tasks, tmp_path / "scores.csv", low=0.0, high=0.3, complain=pytest.fail)
    with (tmp_path / "scores.csv").open() as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    with running(create_application(detector)) as address:
        answers = [
            httpx2.post(f"{address}/predict?map=npy", content=encoded(image(n)), timeout=60)
            for n in (5, 6)
        ]
    for detection, score, answer in zip(expected, scores, answers, strict=True):
        assert score == pytest.approx(detection.score, rel=1e-4)
        assert float(answer.headers["X-Anomaly-Score"]) == pytest.approx(detection.score, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("autoencoder", [False, True])
def test_tiles(autoencoder, config, tmp_path) -> None:
    changes = {"model.fit": "tile", "losses.autoencoder": autoencoder}
    if not autoencoder:
        changes["train.proxy_every"] = 2
    config = replace(config, changes)
    detector = fit(config, tmp_path / "run")
    assert detector.framing.fit == "tile"
    loaded = Detector.load(tmp_path / "run/detector")
    # The threshold is that of whole images, as they are scored later.
    scores = [loaded(image(number)).score for number in (3, 4)]
    np.testing.assert_allclose(scores, loaded.validation_scores, rtol=1e-4)
    plain = replaced(loaded, framing=Framing())
    expected = [detect_tiled(plain, image(number)) for number in (5, 6)]
    for ours, theirs in zip(loaded([image(5), image(6)]), expected, strict=True):
        assert ours.score == theirs.score
        np.testing.assert_array_equal(ours.anomaly_map, theirs.anomaly_map)
    if autoencoder:
        return
    measured, _ = split_validation(load_configured_dataset(config).validation, config)
    proxy = draw_proxy_images(measured, config, loaded.framing)
    scores = np.array([detection.score for detection in loaded(proxy.images)])
    stored = json.loads((tmp_path / "run/proxy.json").read_text())
    # Without an autoencoder, no calibration changes the order of scores.
    assert stored["auroc"] == pytest.approx(auroc_by_kind(scores, proxy).overall)
    # Over all cells of all validation maps.
    local = [loaded(image(number)).local_map for number in (3, 4)]
    assert np.quantile(np.concatenate([m.ravel() for m in local]), 0.9) == pytest.approx(0, abs=0.1)
    assert_every_path_agrees(loaded, tmp_path, expected)
    evaluation = evaluate_workdir(tmp_path / "run")
    assert evaluation.metrics.pixel_auroc is not None
    with pytest.raises(InputError, match="cuts images into tiles and has an ignore mask"):
        check_exportable(
            replaced(loaded, framing=Framing(None, np.zeros((150, 300), bool), "tile"))
        )


@pytest.mark.slow
def test_padding(config, tmp_path) -> None:
    changes = {"model.fit": "pad", "model.input_size": "128x224", "losses.autoencoder": False}
    detector = fit(replace(config, changes), tmp_path / "run")
    loaded = Detector.load(tmp_path / "run/detector")
    assert loaded.framing.fit == "pad"
    scores = [loaded(image(number)).score for number in (3, 4)]
    np.testing.assert_allclose(scores, detector.validation_scores, rtol=1e-4)
    expected = loaded([image(5), image(6)])
    assert [d.anomaly_map.shape for d in expected] == [(150, 300), (160, 290)]
    assert_every_path_agrees(loaded, tmp_path, expected)
    assert evaluate_workdir(tmp_path / "run").metrics.pixel_auroc is not None
    with pytest.raises(InputError, match="its training images had several sizes"):
        loaded.ignored_in()


@pytest.mark.slow
def test_padding_counts_for_nothing() -> None:
    detector = replaced(random_detector(), framing=Framing(fit="pad"))
    pixels = picture(100, 200)
    place = place_in_input(detector.framing, (100, 200), (128, 128))
    assert (place.top, place.height) == (32, 64)
    padded = detector.network_input(pixels)
    assert (padded[:32] == FILL).all()
    loud = padded.copy()
    loud[:32] = 255
    one, other = (detector.detect(x[None], [(100, 200)]) for x in (padded, loud))
    assert float(one.scores[0]) == float(other.scores[0])
    np.testing.assert_array_equal(one.combined, other.combined)
    assert not np.asarray(one.combined)[0, :4].any()
    (several,) = detector.detect_resized(padded[None], [(100, 200)])
    assert several.score == detector(pixels).score


@pytest.mark.slow
def test_an_input_with_the_proportions_of_the_images(config, tmp_path) -> None:
    automatic = replace(config, {"model.input_size": "auto"})
    detector = fit(automatic, tmp_path / "run")
    assert detector.spec.input_size == (128, 128)  # 128 is the least, with as many pixels
    larger = {"model.input_height": 256, "model.input_width": 256}
    dataset = load_configured_dataset(replace(automatic, larger))
    assert dataset.train.images.shape[1:3] == (192, 352)
    # A run that is resumed chooses the same, and the detector knows what was chosen.
    fit(automatic, tmp_path / "run")
    assert detector.config["model"]["input_size"] == ""
    with pytest.raises(InputError, match="belongs to a configuration with other"):
        fit(replace(config, {"model.input_size": "160x128"}), tmp_path / "run")


def folder_of(path: Path, sizes: list[tuple[int, int]]) -> str:
    """A folder of good images of these heights and widths, the last two for validation."""
    for number, size in enumerate(sizes):
        split = "train" if number < len(sizes) - 2 else "validation"
        file = path / split / "good" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(picture(*size)))
    return str(path)


@pytest.mark.parametrize(
    ("sizes", "fit", "shape"),
    [
        ([(100, 250)] * 5, "resize", (160, 416)),
        ([(100, 250), (100, 252), (100, 248), (100, 250), (100, 250)], "resize", (160, 416)),
        ([(100, 250), (100, 200), (100, 250), (100, 250), (100, 250)], "pad", (160, 416)),
        ([(100, 250)] * 3 + [(100, 250), (250, 100)], "pad", (160, 416)),
        ([(256, 256)] * 5, "resize", (256, 256)),
    ],
)
def test_the_images_choose_size_and_fit(sizes, fit, shape, tmp_path) -> None:
    config = replace(recipes.folder(), {"dataset.root": folder_of(tmp_path / "images", sizes)})
    assert (config.model.fit, config.model.input_size) == ("auto", "auto")
    dataset = load_configured_dataset(config)
    chosen, framing = suited_to(config, dataset)
    assert (chosen.model.fit, framing.fit, chosen.model.input_shape) == (fit, fit, shape)
    explicit = load_configured_dataset(chosen)
    for ours, theirs in zip(dataset[:2], explicit[:2], strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)
    given = load_given_images([encoded(picture(*size)) for size in sizes], config)
    assert suited_to(config, given)[0].model.fit == fit


@pytest.mark.slow
def test_a_run_keeps_the_shape_that_it_was_started_with(config, tmp_path) -> None:
    automatic = replace(config, {"model.fit": "auto", "model.input_size": "auto"})
    # As a version did whose recipe changed the proportions of images.
    earlier = replace(config, {"model.fit": "resize"})
    before = fit(earlier, tmp_path / "earlier")
    after = fit(automatic, tmp_path / "earlier")
    assert (after.spec.input_size, after.framing.fit) == ((128, 128), "resize")
    assert after.calibration == before.calibration
    # A sweep that is repeated finds that it is over.
    train_and_evaluate(automatic, tmp_path / "sweep", lambda _: None, cache_gb=0.0)
    detector = Detector.load(tmp_path / "sweep/detector")
    assert detector.framing.fit == detector.config["model"]["fit"] == "pad"
    assert finished(automatic, tmp_path / "sweep") is not None
    with pytest.raises(InputError, match=r"other config\.model\.fit \('pad', not 'resize'\)"):
        finished(earlier, tmp_path / "sweep")


@pytest.mark.slow
@pytest.mark.parametrize("crop", [96, 0])
def test_a_run_keeps_the_parts_of_images_that_it_was_started_with(crop, config, tmp_path) -> None:
    """Recipes of earlier versions had `crop`, and no `crop_pixels`."""
    later = replace(config, {"train.steps": 4, "train.decay_at": 1.0})
    assert later.train.crop_pixels
    earlier = replace(later, {"train.crop": crop, "train.crop_pixels": 0})
    at_once = fit(earlier, tmp_path / "at_once").calibration
    run = tmp_path / "run"
    fit(replace(earlier, {"train.steps": 2}), run)
    file = Workdir(run).config
    stored = json.loads(file.read_text())
    del stored["train"]["crop_pixels"]
    file.write_text(json.dumps(stored))
    for _ in range(2):  # the second time from the configuration that the first one has written
        assert as_started(later, run).crop_size == ((96, 96) if crop else None)
        assert fit(later, run).calibration == at_once
    with pytest.raises(InputError, match=r"other config\.train\.crop \("):
        fit(replace(later, {"train.crop": 64}), run)


def test_crops_lie_inside_of_each_image() -> None:
    images = np.zeros((2, 200, 300, 3), np.uint8)
    sizes = np.array([(130, 300), (200, 135)], np.int32)
    for pixels, (height, width) in zip(images, sizes, strict=True):
        pixels[:height, :width] = 1
    data = TrainData(jnp.asarray(images), None, None, None, jnp.asarray(sizes))
    chosen = jnp.array([0, 1] * 40)
    batch = random_crops(data, chosen, chosen, crop=(128, 128), key=jax.random.key(0))
    assert (np.asarray(batch.images) == 1).all()


def test_sizes_and_fits_of_configurations() -> None:
    model = ModelConfig(input_size="128x320")
    assert (model.input_shape, model.input_size) == ((128, 320), "")
    assert model == ModelConfig(input_height=128, input_width=320)
    assert ModelConfig(input_size="auto").input_shape == (256, 256)
    assert ModelConfig(fit="tile", input_size="auto").input_size == ""
    assert ModelConfig(input_width=320, input_size="auto").input_size == ""
    assert replace(recipes.folder(), {"model.input_height": 320}).model.input_shape == (320, 256)
    assert replace(recipes.folder(), {"model.input_height": 320}).model.input_size == ""
    for values, named in (
        ({"input_size": "100x128"}, r"config\.model\.input_height = 100"),
        ({"input_size": "128"}, r"config\.model\.input_size = '128': expected '', 'auto' or"),
        ({"fit": "tile", "padding": True}, "padding = True: .*fit = 'tile'"),
    ):
        with pytest.raises(InputError, match=named):
            ModelConfig(**values)
    with pytest.raises(InputError, match="'auto' or 'resize' or 'pad' or 'tile'"):
        replace(Config(), {"model.fit": "squeeze"})
