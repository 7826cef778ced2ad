"""The proxy AU-ROC: its images, its values, and trainings that choose their state by it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from efficientad_jax import Detector, InputError, recipes
from efficientad_jax.config import Config, replace
from efficientad_jax.data.framing import PLAIN, Box, Framing, fill, ignored_pixels
from efficientad_jax.data.loading import Dataset, ImageSet, load_configured_dataset
from efficientad_jax.detection.calibration import calibrate
from efficientad_jax.detection.inference import DetectorParams, RawMaps
from efficientad_jax.fitting import proxy as proxy_module
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.fitting.proxy import (
    MOST_DEFECTS,
    MOST_IMAGES,
    ProxyImages,
    auroc_by_kind,
    draw_proxy_images,
    measure_detector,
    proxy_measure,
    split_validation,
)
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, save_teacher
from efficientad_jax.runs.checkpoints import Checkpoints
from efficientad_jax.synthetic_defects.kinds import KINDS
from efficientad_jax.training.loop import saved_students
from tests.helpers.detectors import SPEC, random_params

SIDE = 128


def good_image(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """A dark ground with grain and some bright dots."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 80, (*size, 3), np.uint8)
    y, x = np.mgrid[: size[0], : size[1]]
    for row in range(24, size[0] - 12, 40):
        for column in range(24, size[1] - 12, 40):
            image[(y - row) ** 2 + (x - column) ** 2 <= 20] = rng.integers(180, 250, 3)
    return image


def image_set(count: int, size: tuple[int, int] = (SIDE, SIDE)) -> ImageSet:
    names = [f"{i:03}.png" for i in range(count)]
    images = np.stack([good_image(i, size) for i in range(count)])
    labels = np.zeros(count, np.int64)
    return ImageSet(images, labels, names, ["good"] * count, [None] * count, [size] * count)


def config(**changes: object) -> Config:
    fields = {"model.input_size": f"{SIDE}x{SIDE}", "train.proxy_every": 2}
    return replace(recipes.folder(), fields | changes)


def test_measured_images_do_not_calibrate_a_detector_that_they_choose() -> None:
    validation = image_set(9)
    measured, calibrating = split_validation(validation, config(**{"train.patience": 1}))
    assert (len(measured.names), len(calibrating.names)) == (4, 5)
    assert sorted(measured.names + calibrating.names) == validation.names
    others, everything = split_validation(validation, config())
    assert others.names == measured.names  # the proxy is the same with and without patience
    assert everything is validation
    other_seed, _ = split_validation(validation, config(seed=1))
    assert other_seed.names != measured.names
    with pytest.raises(
        InputError, match=r"train\.patience = 1: found 1 validation image, expected"
    ):
        split_validation(image_set(1), config(**{"train.patience": 1}))
    assert split_validation(image_set(1), config())[0].names == ["000.png"]


def test_the_images_of_a_measurement_are_determined_by_the_seed() -> None:
    measured = image_set(3)
    proxy, again = (draw_proxy_images(measured, config(), PLAIN) for _ in range(2))
    assert proxy.good == 3
    assert proxy.kinds == ["", "", "", *(kind for kind in KINDS for _ in range(3))]
    for i, image in enumerate(proxy.images):
        np.testing.assert_array_equal(image, again.images[i])
        assert any((image != good).any() for good in measured.images) or i < 3
    other = draw_proxy_images(measured, config(seed=1), PLAIN)
    assert any((a != b).any() for a, b in zip(proxy.images[3:], other.images[3:], strict=True))


def test_many_images_are_measured_in_part() -> None:
    validation = image_set(2 * MOST_IMAGES + 20, (SIDE, SIDE))
    measured, _ = split_validation(validation, config())
    assert len(measured.names) == MOST_IMAGES
    fewer = image_set(MOST_DEFECTS + 4)
    kinds = draw_proxy_images(fewer, config(), PLAIN).kinds
    assert max(kinds.count(kind) for kind in KINDS) == MOST_DEFECTS


def test_no_defect_is_drawn_where_nothing_is_looked_at() -> None:
    mask = np.zeros((100, 200), bool)
    mask[:, :90] = True
    padded = Framing(None, mask, "pad")
    measured = image_set(2)._replace(sizes=[(100, 200)] * 2)
    ignored = ignored_pixels(padded, (SIDE, SIDE), (100, 200))
    assert ignored is not None
    images = np.stack([fill(image, ignored) for image in measured.images])
    proxy = draw_proxy_images(measured._replace(images=images), config(), padded)
    assert len(proxy.images) > 2 + len(KINDS)
    for image in proxy.images:
        np.testing.assert_array_equal(image[ignored], images[0][ignored])

    everywhere = Framing(Box(0, 0, 200, 100), np.ones((100, 200), bool))
    with pytest.raises(InputError, match="found no place for a synthetic defect") as refused:
        draw_proxy_images(measured, config(), everywhere)
    assert "\n" not in str(refused.value)


def test_values_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    kinds = ["", "", "", "", "color", "color", "scar", "scar", "scar"]
    scores = rng.integers(0, 5, len(kinds)).astype(np.float32)  # some are equal
    result = auroc_by_kind(scores, ProxyImages([], [], kinds))
    labels = np.array([kind != "" for kind in kinds])
    assert result.overall == pytest.approx(roc_auc_score(labels, scores))
    for kind in ("color", "scar"):
        chosen = np.array([found in ("", kind) for found in kinds])
        expected = roc_auc_score(labels[chosen], scores[chosen])
        assert result.by_kind[kind] == pytest.approx(expected)
    assert list(result.by_kind) == ["color", "scar"]


def test_networks_are_calibrated_by_the_good_images_and_scored_as_a_detector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = {"losses.autoencoder": True, "calibration.score": "top5"}
    given = config(**fields)
    proxy = draw_proxy_images(image_set(3), given, PLAIN)
    rng = np.random.default_rng(0)
    maps = rng.gamma(2.0, size=(2, len(proxy.images), 6, 7)).astype(np.float32)
    maps[0, 3:, 2:4, 2:4] += rng.uniform(0, 6, (len(proxy.images) - 3, 1, 1))
    maps[1] *= 100  # another scale
    raw = RawMaps(jnp.asarray(maps[0]), jnp.asarray(maps[1]))
    monkeypatch.setattr(proxy_module, "collect_raw_maps", lambda *args, **rest: raw)
    spec = SPEC._replace(autoencoder=True)
    result = proxy_measure(given, proxy, spec, framing=PLAIN)(DetectorParams({}, {}, {}))

    low, high = np.quantile(maps[:, :3].reshape(2, -1), [0.9, 0.995], axis=1).reshape(2, 2, 1, 1, 1)
    combined = (0.1 * (maps - low) / (high - low)).mean(0)
    scores = np.sort(combined.reshape(len(combined), -1), axis=1)[:, -5:].mean(1)
    labels = np.array([kind != "" for kind in proxy.kinds])
    assert 0.5 < result.overall < 1
    assert result.overall == pytest.approx(roc_auc_score(labels, scores))


# Trainings.


def fit(given: Config, workdir: Path) -> Detector:
    return fit_detector(given, load_configured_dataset(given), workdir)


def arrays(workdir: Path) -> bytes:
    (file,) = (workdir / "detector").glob("*.safetensors")
    return file.read_bytes()


@pytest.fixture
def without(tmp_path: Path) -> Config:
    """Of a training without measurements."""
    for part, count in (("train", 2), ("validation", 4)):
        (tmp_path / f"data/{part}/good").mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(good_image(10 * count + i))
            image.save(tmp_path / f"data/{part}/good/{i}.png", compress_level=0)
    # The C++ convolutions, which compile quickly, need 32 features.
    params = random_params(PatchDescriptionNetwork("small", 32), (SIDE, SIDE))
    save_teacher(tmp_path / "teacher.safetensors", Teacher("small", 32, params, {}))
    fields = {
        "dataset.root": str(tmp_path / "data"),
        "teacher": str(tmp_path / "teacher.safetensors"),
        "train.steps": 3,
        "train.steps_per_dispatch": 1,
        "train.decay_at": 0.34,
        "train.checkpoint_every": 1,
        "train.checkpoints_kept": 3,
        "train.proxy_every": 0,
    }
    return config(**fields)


@pytest.mark.slow
def test_measurements_change_nothing_but_what_they_choose(
    without: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With one kind of defect as many images are measured as there are for validation: the program
    # is the same.
    monkeypatch.setattr(proxy_module, "KINDS", {"texture": KINDS["texture"]})
    expected = fit(without, tmp_path / "without")
    assert not (tmp_path / "without/proxy.json").exists()
    measuring = replace(without, {"train.proxy_every": 1})
    shown = fit(measuring, tmp_path / "shown")
    assert arrays(tmp_path / "shown") == arrays(tmp_path / "without")
    assert shown.calibration == expected.calibration
    assert shown.validation_scores == expected.validation_scores
    assert len(expected.validation_scores) == 4
    proxy = json.loads((tmp_path / "shown/proxy.json").read_text())
    assert proxy["step"] == 3
    validation = load_configured_dataset(measuring).validation
    measured = measure_detector(shown, validation)
    assert proxy["auroc"] == measured.overall
    assert proxy["auroc_by_kind"] == measured.by_kind

    # Killed after a measurement, before its checkpoint; the rate falls after step 1.
    choosing = replace(measuring, {"train.patience": 1})
    save = Checkpoints.save

    def kill(self: Checkpoints, step: int, *args: object, **rest: object) -> None:
        if step == 2:
            raise KeyboardInterrupt
        save(self, step, *args, **rest)  # pyright: ignore

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", kill)
        with pytest.raises(KeyboardInterrupt):
            fit(choosing, tmp_path / "chosen")
    assert not (tmp_path / "chosen/detector").exists()
    chosen = fit(choosing, tmp_path / "chosen")
    step = json.loads((tmp_path / "chosen/proxy.json").read_text())["step"]
    networks = shown.networks
    students = dict(
        saved_students(tmp_path / "shown", measuring, networks, input_size=(SIDE, SIDE))
    )
    assert step in (2, 3)
    for a, b in zip(*map(jax.tree.leaves, (students[step], chosen.params.student)), strict=True):
        np.testing.assert_array_equal(a, b)
    # The images that chose the state are not those of the threshold.
    _, calibrating = split_validation(validation, choosing)
    calibration, scores, _ = calibrate(
        networks, chosen.params, calibrating.images, score_values=chosen.calibration.score_values
    )
    assert chosen.calibration == calibration
    assert chosen.validation_scores == pytest.approx(scores.tolist())
    assert chosen.threshold is not None
    assert chosen.threshold.images == len(scores) == 2


def test_a_training_that_cannot_choose_leaves_nothing_behind(tmp_path: Path) -> None:
    choosing = config(**{"train.patience": 1})
    single = image_set(1)
    with pytest.raises(InputError, match="found 1 validation image, expected at least 2"):
        fit_detector(choosing, Dataset(single, single, single), tmp_path / "single")
    assert not (tmp_path / "single").exists()
