"""PUAD as an option of a detector: every way to run it gives the same score, and off is off."""

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from efficientad_jax import Detector, InputError, detect_tiled, recipes
from efficientad_jax.config import as_dict
from efficientad_jax.config import replace as changed
from efficientad_jax.data.framing import Framing, fill
from efficientad_jax.data.loading import Dataset, ImageSet
from efficientad_jax.detection.accelerated import AcceleratedDetection
from efficientad_jax.detection.heatmap import plan_pictures
from efficientad_jax.detection.predict_files import predict_files
from efficientad_jax.detection.puad.distance import distances_on_host
from efficientad_jax.detection.spec import DetectorSpec
from efficientad_jax.evaluation.split_maps import maps_of_split
from efficientad_jax.export.properties import check_exportable
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.fitting.puad import fit_puad
from efficientad_jax.fitting.puad_summary import puad_summary
from efficientad_jax.known_defects.comparison import (
    Inputs,
    candidates,
    compare,
    compared_images,
    with_candidate,
)
from efficientad_jax.networks.ignored import ignored_places
from efficientad_jax.networks.layers import float32_features
from efficientad_jax.networks.model import create_networks
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.serving.scoring import score_batch
from tests.helpers.detectors import random_detector
from tests.helpers.images import encoded, uint8_images
from tests.helpers.puad import SIZE, dataset_of, image_set, images_of

CHANNELS = 6
SPEC = DetectorSpec("small", CHANNELS, SIZE, False, "float32", autoencoder=False)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dataset_of()


@pytest.fixture(scope="module")
def plain(dataset: Dataset) -> Detector:
    """A detector without PUAD, with a threshold."""
    detector = random_detector(SPEC, score_values=5, config=as_dict(recipes.folder()))
    scores = maps_of_split(detector, dataset.validation).scores
    return replace(detector, validation_scores=tuple(scores.tolist())).with_threshold(0.2)


@pytest.fixture(scope="module")
def detector(plain: Detector, dataset: Dataset) -> Detector:
    return fit_puad(plain, dataset)


@partial(jax.jit, static_argnames="network")
def _features(network, params, image):
    return float32_features(network, params, normalize_images(to_unit_range(image)))


def student_features(detector: Detector, images: np.ndarray) -> np.ndarray:
    """The student's first features of whole images, of any size."""
    network = detector.networks.student
    each = [_features(network, detector.params.student, image[None])[0] for image in images]
    return np.stack(each)[..., :CHANNELS].astype(np.float64)


def scores_by_hand(detector: Detector, without: np.ndarray, means: np.ndarray) -> np.ndarray:
    assert detector.params.puad is not None
    assert detector.calibration.puad is not None
    mean, weight = detector.calibration.puad
    return without + weight * (distances_on_host(detector.params.puad, means) - mean)


@pytest.fixture(scope="module")
def expected(plain: Detector, detector: Detector, dataset: Dataset) -> np.ndarray:
    """The scores of the test images, from features by XLA and the plain detector's scores."""
    without = np.array([detection.score for detection in plain(list(dataset.test.images))])
    means = student_features(detector, dataset.test.images).mean((1, 2))
    scores = scores_by_hand(detector, without, means)
    assert np.abs(scores - without).min() > 1e-3
    return scores


def test_statistics_are_of_the_training_images(detector: Detector, dataset: Dataset) -> None:
    means = student_features(detector, dataset.train.images).mean((1, 2))
    assert detector.params.puad is not None
    np.testing.assert_allclose(detector.params.puad.mean, means.mean(0), atol=1e-5)
    train = distances_on_host(detector.params.puad, means)
    # The mean square of whitened deviations is the number of features, but for the shrinkage.
    assert 0.3 < np.square(train).mean() / CHANNELS < 1.1


def test_every_path_gives_the_same_score(
    detector: Detector, dataset: Dataset, expected: np.ndarray, tmp_path: Path
) -> None:
    images = dataset.test.images
    found = {
        "call": [detection.score for detection in detector(list(images))],
        "batch": np.asarray(detector.detect(images).scores),
        "tiles": [detect_tiled(detector, image).score for image in images],
        "evaluate": maps_of_split(detector, dataset.test).scores,
        "serve": [scored.score for scored in score_batch(detector, list(images))],
    }
    for i, image in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(encoded(image))
    tasks, _ = plan_pictures([tmp_path], None, pytest.fail, draws_pictures=False)
    for name, overlap in (("predict", None), ("predict, tiles", 32)):
        predict_files(
            detector,
            tasks,
            tmp_path / "scores.csv",
            low=0.0,
            high=0.3,
            complain=pytest.fail,
            overlap=overlap,
        )
        with (tmp_path / "scores.csv").open() as file:
            found[name] = [float(row["score"]) for row in csv.DictReader(file)]
    inputs = Inputs(dataset.validation.images, dataset.validation.sizes)
    defects = Inputs(images, dataset.test.sizes)
    present, *_ = compare(detector, inputs, defects, false_alarm_rate=0.2)
    rest = [i for i in range(10) if i % 3]
    ours = detector(list(dataset.validation.images[rest]))
    np.testing.assert_allclose(present.good, [d.score for d in ours], rtol=1e-4)
    np.testing.assert_allclose(detector.validation_scores, present.good, rtol=1e-4)
    for name, scores in found.items():
        np.testing.assert_allclose(scores, expected, atol=1e-4, err_msg=name)


def test_accelerated_programs_give_the_same_score(
    detector: Detector, dataset: Dataset, expected: np.ndarray, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    networks = create_networks("small", CHANNELS, SIZE, convolution="gpu")
    accelerated = AcceleratedDetection(networks, detector.params)
    images = dataset.test.images
    found = accelerated(detector.calibration, images)
    np.testing.assert_allclose(found.scores, expected, atol=1e-4)
    # The same networks with weights of the outputs, as in tiles.
    weights = np.zeros((1, 24, 24), np.float32)
    weights[0, 3, 4] = 1
    found = accelerated(detector.calibration, images, None, weights)
    one = student_features(detector, images)[:, 3, 4]
    assert found.features is not None
    np.testing.assert_allclose(found.features, one, atol=1e-4)


@pytest.mark.slow
def test_exported_files_give_the_same_score(
    detector: Detector, dataset: Dataset, expected: np.ndarray
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra: pip install -e '.[export]'")
    from efficientad_jax.export.int8 import int8_model
    from efficientad_jax.export.onnx_model import onnx_model
    from efficientad_jax.export.programs import onnx_program, stablehlo_program
    from efficientad_jax.export.stablehlo import stablehlo_bytes

    images = dataset.test.images
    masked = replace(detector, framing=Framing(None, ignore_mask()))
    assert masked.calibration.puad is not None
    for each in (detector, masked):
        program = onnx_program(onnx_model(each).SerializeToString())
        found = program.run(images)
        assert set(found) == {"scores", "combined", "local"}
        np.testing.assert_allclose(found["scores"], each.detect(images).scores, atol=1e-4)
    found = stablehlo_program(stablehlo_bytes(detector)).run(images)
    assert set(found) == {"scores", "combined", "local"}
    np.testing.assert_allclose(found["scores"], expected, atol=1e-4)
    with pytest.raises(InputError, match="the detector's score has PUAD"):
        int8_model(detector, images)


def test_tiles_count_each_output_of_the_image_once(detector: Detector) -> None:
    (image,) = images_of(1, 7, (200, 328))
    means = student_features(detector, image[None]).mean((1, 2))
    plain = detector.with_puad(False)
    for overlap in (32, 60):
        without = detect_tiled(plain, image, overlap).score
        by_hand = scores_by_hand(detector, np.array([without]), means)
        found = detect_tiled(detector, image, overlap).score
        assert found == pytest.approx(by_hand[0], abs=1e-4)
        assert abs(found - without) > 1e-3


def test_statistics_of_tiles_are_of_whole_images(plain: Detector) -> None:
    data = dataset_of((128, 200))
    tiled = fit_puad(replace(plain, framing=Framing(None, None, "tile")), data)
    means = student_features(tiled, data.train.images).mean((1, 2))
    assert tiled.params.puad is not None
    np.testing.assert_allclose(tiled.params.puad.mean, means.mean(0), atol=1e-5)
    scores = maps_of_split(tiled, data.validation).scores[[i for i in range(10) if i % 3]]
    np.testing.assert_allclose(tiled.validation_scores, scores, atol=1e-4)
    with pytest.raises(InputError, match="cuts images into tiles and its score has PUAD"):
        check_exportable(tiled)


def ignore_mask() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[20:90, 30:120] = True
    return mask


def test_ignored_pixels_change_nothing(plain: Detector, dataset: Dataset) -> None:
    # Maps then have another size than the outputs.
    calibration = plain.calibration._replace(upsample_first=True)
    masked = replace(plain, framing=Framing(None, ignore_mask()), calibration=calibration)
    noise = uint8_images(10, seed=8)

    def disturbed(part: ImageSet) -> ImageSet:
        images = np.where(ignore_mask()[..., None], noise[: len(part.names)], part.images)
        return part._replace(images=images)

    ours = fit_puad(masked, dataset)
    theirs = fit_puad(masked, Dataset(*map(disturbed, dataset)))
    assert ours.puad == theirs.puad
    for a, b in zip(*(jax.tree.leaves(each.params) for each in (ours, theirs)), strict=True):
        np.testing.assert_array_equal(a, b)
    image = dataset.test.images[0]
    other = np.where(ignore_mask()[..., None], noise[0], image)
    for detect in (ours, lambda pixels: detect_tiled(ours, pixels)):
        assert detect(image).score == detect(other).score
    # Outputs that see only ignored pixels are left out of the mean, others see a constant color.
    (counted,) = ~ignored_places(ignore_mask(), padding=False).values
    assert 0 < counted.sum() < counted.size
    filled = np.stack([fill(each, ignore_mask()) for each in dataset.train.images])
    means = student_features(ours, filled)[:, counted].mean(1)
    assert ours.params.puad is not None
    np.testing.assert_allclose(ours.params.puad.mean, means.mean(0), atol=1e-5)


def test_padding_counts_for_nothing(detector: Detector) -> None:
    padded = replace(detector, framing=Framing(fit="pad"))
    (wide,) = images_of(1, 4, (32, 128))
    pixels = padded.network_input(wide)
    loud = np.where(np.arange(128)[:, None, None] < 48, 255, pixels).astype(np.uint8)
    quiet, disturbed = (padded.detect(x[None], [(32, 128)]) for x in (pixels, loud))
    assert float(quiet.scores[0]) == float(disturbed.scores[0])
    ignored = padded.ignored_in([(32, 128)])
    assert ignored is not None
    inside = ~np.asarray(ignored.values)[0]
    assert 0 < inside.sum() < inside.size
    means = student_features(detector, pixels[None])[:, inside].mean(1)
    assert quiet.features is not None
    np.testing.assert_allclose(quiet.features, means, atol=1e-4)


def test_off_is_off_and_detectors_are_saved_with_their_statistics(
    plain: Detector, detector: Detector, dataset: Dataset, tmp_path: Path
) -> None:
    off = detector.with_puad(False)
    images = dataset.test.images
    for name in ("scores", "combined", "local"):
        before, after = (np.asarray(getattr(d.detect(images[:1]), name)) for d in (plain, off))
        np.testing.assert_array_equal(before, after)
    assert off.threshold is not None
    assert plain.threshold is not None
    assert off.threshold.value == pytest.approx(plain.threshold.value, rel=1e-5)
    assert off.with_puad(True).validation_scores == detector.validation_scores
    assert off.with_puad(True).threshold == detector.threshold
    assert detector.config["calibration"]["puad"]
    for name, each, version in (("on", detector, 5), ("off", off, 5), ("plain", plain, 3)):
        each.save(tmp_path / name)
        record = json.loads((tmp_path / name / "detector.json").read_text())
        assert record["version"] == version
        assert ("puad" in record) == (version == 5)
        loaded = Detector.load(tmp_path / name)
        assert (loaded.puad, loaded.calibration) == (each.puad, each.calibration)
        assert loaded(images[0]).score == each(images[0]).score
        loaded.save_record(tmp_path / name)
        assert Detector.load(tmp_path / name).puad == each.puad
    with pytest.raises(InputError, match="has no statistics of PUAD; fit them with"):
        plain.with_puad(False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight", 0.0),
        ("weight", "1"),
        ("distance_mean", None),
        ("used", 1),
        ("scores", [0.1]),
        ("scores_without", [0.1, float("nan")]),
    ],
)
def test_a_damaged_record_is_one_line(
    field: str, value: object, detector: Detector, tmp_path: Path
) -> None:
    detector.save(tmp_path)
    record = json.loads((tmp_path / "detector.json").read_text())
    record["puad"][field] = value
    (tmp_path / "detector.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="not as this package writes it"):
        Detector.load(tmp_path)


def test_on_or_off_is_one_more_candidate(detector: Detector, dataset: Dataset) -> None:
    off = detector.with_puad(False)
    ways = {c[:2] + c[3:] for c in candidates(off.calibration, has_puad=True)}
    assert ways == {(n, 0.5, False) for n in (5, 1, 20, 100)} | {(5, 0.5, True)}
    on = candidates(detector.calibration, has_puad=True)
    assert on[0][:2] + on[0][3:] == (5, 0.5, True)
    assert {c[:2] + c[3:] for c in on} == ways
    good = Inputs(dataset.validation.images, dataset.validation.sizes)
    defects = Inputs(dataset.test.images, dataset.test.sizes)
    assert compared_images(detector, 10) == 6
    first, *others = compare(off, good, defects, false_alarm_rate=0.2)
    (toggled,) = (other for other in others if other.candidate.puad)
    applied = with_candidate(off, toggled)
    assert applied.calibration == detector.calibration
    np.testing.assert_allclose(applied.validation_scores, detector.validation_scores, atol=1e-5)
    assert applied.config["calibration"]["puad"]
    other = with_candidate(detector, others[0])
    assert other.calibration.puad is None
    assert len(other.validation_scores) == 10
    # The scale is that of the other rule.
    assert other.puad is not None
    again = fit_puad(replace(other, puad=None), dataset).puad
    assert again is not None
    np.testing.assert_allclose(other.puad.scale, again.scale, rtol=1e-3)
    assert off.puad is not None
    rest = [score for i, score in enumerate(off.puad.plain) if i % 3]
    assert first.good == pytest.approx(rest, rel=1e-4)


def test_few_images_are_refused_before_the_training(
    plain: Detector, dataset: Dataset, tmp_path: Path
) -> None:
    few = dataset._replace(validation=image_set(dataset.validation.images[:9]))
    with pytest.raises(InputError, match="PUAD: 9 validation images, expected at least 10"):
        fit_puad(plain, few)
    config = changed(recipes.folder(), {"calibration.puad": True})
    with pytest.raises(InputError, match="PUAD: 9 validation images"):
        fit_detector(config, few, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_a_threshold_the_summary_counts_no_verdicts(detector: Detector) -> None:
    line = puad_summary(replace(detector, threshold=None))
    assert "rank correlation" in line
    assert "threshold" not in line
