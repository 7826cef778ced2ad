"""An ignore mask and a region of interest in every way to use a detector."""

import csv
import io
import json
from dataclasses import replace
from functools import partial

import httpx2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax import InputError
from efficientad_jax.data.framing import Box, Framing, ignored_pixels, map_of_image
from efficientad_jax.data.image_rows import rows_of_array
from efficientad_jax.detection.accelerated import AcceleratedDetection
from efficientad_jax.detection.heatmap import plan_pictures
from efficientad_jax.detection.inference import detect
from efficientad_jax.detection.predict_files import predict_files
from efficientad_jax.detection.spec import DetectorSpec
from efficientad_jax.detection.tiling import compute_tiled_maps
from efficientad_jax.export.programs import onnx_program, stablehlo_program
from efficientad_jax.export.stablehlo import stablehlo_bytes
from efficientad_jax.networks.ignored import ignored_places
from efficientad_jax.networks.model import create_networks
from efficientad_jax.serving.application import create_application
from efficientad_jax.watching.watch import Options, watch
from tests.helpers.detectors import random_detector
from tests.helpers.images import encoded, picture, uint8_images
from tests.helpers.live_server import running

SIZE = (128, 160)
SPEC = DetectorSpec("small", 2, SIZE, False, "float32", autoencoder=True)
SHAPE = (150, 200)
BOX = Box(10, 0, 185, 150)


def own_mask():
    mask = np.zeros(SHAPE, bool)
    mask[20:110, 30:120] = mask[3, 7] = True
    return mask


def detector_with_mask(**options):
    plain = random_detector(SPEC._replace(autoencoder=options.pop("autoencoder", True)), **options)
    return replace(plain, framing=Framing(BOX, own_mask()))


def image(noise=0):
    pixels = picture(*SHAPE, seed=3)
    other = np.random.default_rng(noise).integers(0, 256, pixels.shape, np.uint8)
    return np.where(own_mask()[..., None], other, pixels)


@pytest.fixture(scope="module")
def detector():
    return detector_with_mask(score_values=20)


@pytest.fixture(scope="module")
def expected(detector):
    return detector(image())


@pytest.mark.slow
def test_ignored_values_are_zero_and_never_scored(detector, expected):
    plain = replace(detector, framing=Framing(BOX))
    loud = np.where(own_mask()[..., None], image(1), 128)
    found, unmasked = detector(loud), plain(loud)
    assert found.score < unmasked.score
    anomalies = detector.detect(detector.network_input(loud)[None])
    values = np.pad(np.asarray(detector.ignored_in().values)[0], 4)
    for m in (anomalies.combined, anomalies.local, anomalies.global_):
        assert not np.asarray(m)[0][values].any()
    # The rule of the score, on the values that count.
    counted = np.asarray(anomalies.combined)[0, 4:-4, 4:-4][
        ~np.asarray(detector.ignored_in().values)[0]
    ]
    assert found.score == pytest.approx(np.sort(counted)[-20:].mean(), rel=1e-5)
    highest = replace(detector, calibration=detector.calibration._replace(score_values=1))
    assert highest(loud).score == pytest.approx(counted.max(), rel=1e-5)
    every = replace(detector, calibration=detector.calibration._replace(score_values=500))
    assert every(loud).score == pytest.approx(np.sort(counted)[-500:].mean(), rel=1e-5)
    assert expected.score == detector(image(1)).score


def test_a_score_of_more_values_than_count_takes_all_that_do(detector):
    mask = np.ones(SHAPE, bool)
    mask[100:, 120:] = False
    small = replace(
        detector,
        framing=Framing(None, mask),
        calibration=detector.calibration._replace(score_values=500),
    )
    places = ~np.asarray(small.ignored_in().values)[0]
    assert places.sum() < 500
    combined = np.asarray(small.detect(small.network_input(image())[None]).combined)[0, 4:-4, 4:-4]
    assert small(image()).score == pytest.approx(combined[places].mean(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gpu", "tpu"])
def test_accelerators_ignore_the_same(method, detector, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    create = partial(create_networks, "small", 2, SIZE)
    accelerated = AcceleratedDetection(create(convolution=method), detector.params)
    images = uint8_images(2, SIZE)
    plain = create(convolution="direct")
    for ignored in (detector.ignored_in(), None):
        theirs = detect(plain, detector.params, detector.calibration, jnp.asarray(images), ignored)
        ours = accelerated(detector.calibration, images, ignored)
        for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_tiles_at_the_size_of_the_input_are_the_same(detector):
    mask = np.zeros(SIZE, bool)
    mask[20:90, 30:110] = True
    fitting = replace(detector, framing=Framing(None, mask))
    pixels = picture(*SIZE)
    tiled = compute_tiled_maps(fitting, rows_of_array(pixels))
    whole = fitting(pixels)
    assert tiled.score == pytest.approx(whole.score, rel=1e-6)
    anomalies = fitting.detect(fitting.network_input(pixels)[None])
    np.testing.assert_allclose(tiled.combined, np.asarray(anomalies.combined)[0], atol=1e-6)
    np.testing.assert_allclose(tiled.parts[1], np.asarray(anomalies.global_)[0], atol=1e-6)


def test_predict_serve_and_watch_agree(detector, expected, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for noise in (1, 2):
        (folder / f"{noise}.png").write_bytes(encoded(image(noise)))
    (folder / "other.png").write_bytes(encoded(picture(60, 50)))

    complaints = []
    tasks, _ = plan_pictures([folder], None, complaints.append)
    scores = tmp_path / "scores.csv"
    given = {"low": 0.0, "high": 0.3, "complain": complaints.append}
    assert predict_files(detector, tasks, scores, **given) == 1
    with scores.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == [pytest.approx(expected.score, rel=1e-5)] * 2
    assert all(row["heatmap"] for row in rows)
    (line,) = complaints
    assert "other.png: 60x50 pixels, expected the 150x200 of the ignore mask" in line

    with running(create_application(detector)) as address:
        for noise in (1, 2):
            answer = httpx2.post(
                f"{address}/predict?map=npy", content=encoded(image(noise)), timeout=60
            )
            score = json.loads(answer.headers["X-Anomaly-Score"])
            assert score == pytest.approx(expected.score, rel=1e-5)
            found = np.load(io.BytesIO(answer.content))
            np.testing.assert_allclose(found, expected.anomaly_map, atol=1e-5)
        refused = httpx2.post(f"{address}/predict", content=encoded(picture(60, 50)), timeout=60)
        assert refused.status_code == 422
        assert "60x50 pixels, expected the 150x200" in refused.json()["error"]

    lines, errors = [], []
    options = Options(settle=0.0, pictures="none")
    scored, failed = watch(
        detector,
        str(folder),
        tmp_path / "watched",
        options=options,
        stopped=lambda: len(lines) + len(errors) >= 3,
        report=lines.append,
        report_error=errors.append,
    )
    assert (scored, failed) == (2, 1)
    assert "other.png: 60x50 pixels" in errors[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"score_values": 20}, {"upsample_first": True, "autoencoder": False}],
    ids=["autoencoder", "upsampled first"],
)
def test_exported_programs_hold_the_mask(options):
    export = pytest.importorskip("efficientad_jax.export.onnx_model")
    detector = detector_with_mask(**options)
    programs = [
        onnx_program(export.onnx_model(detector).SerializeToString()),
        stablehlo_program(stablehlo_bytes(detector)),
    ]
    results = []
    # The caller cuts out the region of interest and resizes; the program ignores the rest.
    ignorant = replace(detector, framing=Framing(BOX))
    for noise in (1, 2):
        images = ignorant.network_input(image(noise))[None]
        expected = detector(image(noise))
        for program in programs:
            outputs = program.run(images)
            span = np.ptp(expected.anomaly_map)
            np.testing.assert_allclose(outputs["scores"], expected.score, atol=1e-4 * span)
            enlarged = map_of_image(
                detector.framing, outputs["combined"][0], SHAPE, input_size=SIZE
            )
            np.testing.assert_allclose(enlarged, expected.anomaly_map, atol=1e-4 * span)
            results.append(outputs)
    for a, b in zip(results[:2], results[2:], strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.slow
def test_int8_ignores_the_same():
    pytest.importorskip("onnxruntime")
    from efficientad_jax.export.int8 import int8_model

    detector = detector_with_mask(autoencoder=False)
    ignorant = replace(detector, framing=Framing(BOX))
    images = [np.stack([ignorant.network_input(image(noise))] * 2) for noise in (1, 2)]
    models = [onnx_program(int8_model(detector, i).SerializeToString()) for i in images]
    for model in models:
        for name, values in model.run(images[0]).items():
            np.testing.assert_array_equal(values, model.run(images[1])[name])


def test_a_mask_that_ignores_every_patch_is_refused(detector):
    mask = np.ones(SHAPE, bool)
    mask[0, 0] = False
    hidden = replace(detector, framing=Framing(Box(100, 100, 50, 50), mask))
    assert ignored_pixels(hidden.framing, SIZE, (50, 50)).all()
    with pytest.raises(InputError, match="ignore mask: at the 128x160 pixels of the networks'"):
        hidden(image())
    with pytest.raises(InputError, match="every patch is ignored"):
        ignored_places(np.ones(SIZE, bool), padding=True)
