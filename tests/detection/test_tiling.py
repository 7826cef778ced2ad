"""Tiles against the networks applied to the whole image, and against a literal blend."""

import csv
import logging
import tracemalloc
from dataclasses import replace
from functools import cache
from itertools import pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax import Detector, InputError, MapQuantiles, choose_threshold, detect_tiled
from efficientad_jax.detection.heatmap import Task
from efficientad_jax.detection.inference import (
    Anomalies,
    jitted_detect,
    raw_maps,
)
from efficientad_jax.detection.predict_files import predict_files
from efficientad_jax.detection.spec import DetectorSpec
from efficientad_jax.detection.tiles.cutting import blend_shares, tile_offsets
from efficientad_jax.detection.tiling import chosen_overlap
from efficientad_jax.networks.model import create_networks
from tests.helpers.detectors import random_detector
from tests.helpers.images import encoded, picture

SIDE = 128
SIZE = (SIDE, SIDE)
QUANTILES = MapQuantiles(0.5, 2.0)


@cache
def make_detector(padding=False, autoencoder=False, upsample_first=False):
    spec = DetectorSpec("small", 1, SIZE, padding, "float32", autoencoder)
    return random_detector(spec, upsample_first=upsample_first)


def whole_map(detector, image):
    """The map of the networks applied to the image at once, directly: a value each 4 pixels."""
    spec = detector.spec
    networks = create_networks("small", 1, SIZE, padding=spec.padding, convolution="direct")
    params = detector.params._replace(autoencoder=None)
    raw = raw_maps(networks, params, jnp.asarray(image[None])).local[0]
    return 0.1 * (np.asarray(raw) - 0.5) / 1.5


def assert_close(found, expected):
    """Up to the rounding of convolutions, 1e-5 of the largest value, squared and scaled."""
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size"),
    [({}, SIZE), ({}, (70, 90)), ({"autoencoder": True}, SIZE), ({"padding": True}, SIZE)],
)
def test_an_image_that_fits_gives_the_same_bits(kind, size):
    detector = make_detector(**kind)
    plain, tiled = detector(picture(*size)), detect_tiled(detector, picture(*size))
    assert tiled.score == plain.score
    np.testing.assert_array_equal(tiled.anomaly_map, plain.anomaly_map)
    np.testing.assert_array_equal(tiled.local_map, plain.local_map)
    assert (tiled.global_map is None) == (plain.global_map is None)
    if plain.global_map is not None:
        np.testing.assert_array_equal(tiled.global_map, plain.global_map)


@pytest.mark.slow
def test_an_image_that_fits_gives_the_same_where_maps_are_upsampled_first():
    detector = make_detector(upsample_first=True)
    plain, tiled = detector(picture(*SIZE)), detect_tiled(detector, picture(*SIZE))
    assert tiled.score == pytest.approx(plain.score, rel=1e-5)
    np.testing.assert_allclose(tiled.anomaly_map, plain.anomaly_map, atol=1e-5 * plain.score)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(300, 213), (129, 131), (130, 128), (260, 128)])
def test_a_large_map_is_that_of_the_networks_on_the_whole_image(size):
    detector, image = make_detector(), picture(*size)
    expected = whole_map(detector, image)
    found = detect_tiled(detector, image)
    assert found.score == pytest.approx(expected.max(), rel=1e-4)
    padded = np.pad(expected, 4)
    full = (4 * padded.shape[0], 4 * padded.shape[1])
    assert all(0 <= full[i] - size[i] < 4 for i in (0, 1))
    resized = np.asarray(jax.image.resize(padded, full, "bilinear"))
    assert_close(found.anomaly_map, resized[: size[0], : size[1]])
    assert found.local_map is found.anomaly_map
    assert found.global_map is None


@pytest.mark.slow
def test_a_large_map_is_that_of_the_whole_image_where_maps_are_upsampled_first():
    detector, image = make_detector(upsample_first=True), picture(196, 172)
    expected = jax.image.resize(whole_map(detector, image), (196, 172), "bilinear")
    found = detect_tiled(detector, image)
    assert_close(found.anomaly_map, np.asarray(expected))
    assert found.score == pytest.approx(float(expected.max()), rel=1e-4)


@pytest.mark.slow
def test_a_score_of_several_values_is_that_of_the_whole_map():
    plain = make_detector()
    detector = replace(plain, calibration=plain.calibration._replace(score_values=10))
    image = picture(300, 213)
    tiled = detect_tiled(detector, image)
    highest = np.sort(whole_map(detector, image), axis=None)[-10:]
    assert_close(tiled.score, highest.mean())
    assert tiled.score < detect_tiled(plain, image).score


def test_the_zeros_around_the_tiles_of_a_padded_network_are_not_seen():
    detector, image = make_detector(padding=True), picture(196, 172)
    expected = whole_map(detector, image)
    found = detect_tiled(detector, image)
    assert found.score == pytest.approx(expected.max(), rel=1e-4)
    assert_close(found.anomaly_map, np.asarray(jax.image.resize(expected, (196, 172), "bilinear")))


def test_a_short_side_is_enlarged_and_the_other_is_not():
    detector = make_detector()
    image = np.repeat(picture(200, 1), 40, axis=1)  # columns that are all the same
    found = detect_tiled(detector, image)
    assert found.anomaly_map.shape == (200, 40)
    wide = detect_tiled(detector, np.repeat(picture(200, 1), SIDE, axis=1))
    assert found.score == pytest.approx(wide.score, rel=1e-5)


@pytest.mark.slow
def test_maps_of_an_autoencoder_are_blended_by_the_distance_to_the_border():
    detector, image, overlap = make_detector(autoencoder=True), picture(160, 180), 80
    sums, weights = np.zeros((40, 45)), np.zeros((40, 45))
    for top, left in product((0, 32), (0, 24, 52)):
        of_tile = detector.detect(image[None, top : top + SIDE, left : left + SIDE]).global_
        assert of_tile is not None
        for y, x in product(range(32), range(32)):
            row, column = top // 4 + y, left // 4 + x
            # In its margin, unless it is that of the image, a tile knows nothing.
            down = min(y - 3 if top > 0 else 32, 28 - y if top < 32 else 32)
            across = min(x - 3 if left > 0 else 32, 28 - x if left < 52 else 32)
            weight = max(down, 0) * max(across, 0)
            sums[row, column] += weight * float(of_tile[0, y, x])
            weights[row, column] += weight
    assert tile_offsets(160, SIDE, overlap) == [0, 32]
    assert tile_offsets(180, SIDE, overlap) == [0, 24, 52]
    expected = np.asarray(jax.image.resize(sums / weights, image.shape[:2], "bilinear"))
    found = detect_tiled(detector, image, overlap)
    assert found.global_map is not None
    assert_close(found.global_map, expected)
    mean = 0.5 * found.local_map + 0.5 * found.global_map
    np.testing.assert_allclose(found.anomaly_map, mean, atol=1e-5)
    assert_close(
        found.local_map,
        np.asarray(
            jax.image.resize(np.pad(whole_map(detector, image), 4), image.shape[:2], "bilinear")
        ),
    )


@pytest.mark.parametrize("overlap", [32, 36, 64, 100, 124])
@pytest.mark.parametrize("side", [128, 129, 132, 224, 225, 500, 1001])
def test_tiles_cover_every_cell_and_their_shares_sum_to_one(side, overlap):
    offsets = tile_offsets(side, SIDE, overlap)
    assert offsets[0] == 0
    assert 0 <= offsets[-1] + SIDE - side < 4
    assert all(offset % 4 == 0 for offset in offsets)
    assert all(0 < b - a <= SIDE - overlap for a, b in pairwise(offsets))
    total = np.zeros((offsets[-1] + SIDE) // 4)
    steepest = 0.0
    for offset, of_tile in zip(offsets, blend_shares(offsets, SIDE), strict=True):
        total[offset // 4 : offset // 4 + 32] += of_tile
        assert (of_tile >= 0).all()
        steepest = max(steepest, np.abs(np.diff(of_tile[4:-4])).max())
    np.testing.assert_allclose(total, 1, atol=1e-6)
    # A share rises over all cells that two tiles know, overlap / 4 - 8 at least; where three
    # overlap it may rise quicker.
    assert steepest <= 1 / (min(overlap, 64) / 4 - 8 + 1) + 1e-6


def test_memory_is_that_of_the_image_its_map_and_one_tile(monkeypatch):
    shapes = set()

    def quick(self, tiles, weights=None):
        shapes.add(tiles.shape)
        maps = tiles[:, ::4, ::4, 0].astype(np.float32)
        return Anomalies(maps.max((1, 2)), maps, maps, None)

    monkeypatch.setattr(Detector, "detect_tiles", quick)
    image = picture(2400, 2000)
    tracemalloc.start()
    found = detect_tiled(make_detector(), image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert shapes == {(1, SIDE, SIDE, 3)}
    # Pillow holds the map twice as it hands it over. The image in float32 would be three times it.
    assert peak < 2.2 * found.anomaly_map.nbytes


@pytest.mark.parametrize("overlap", [0, 31, 125, 128, -32])
def test_an_overlap_that_does_not_suit_is_refused(overlap):
    with pytest.raises(InputError, match=rf"overlap {overlap}: expected 32 to 124 pixels"):
        detect_tiled(make_detector(), picture(*SIZE), overlap)
    assert chosen_overlap(make_detector().spec, None) == 32
    spec = make_detector().spec._replace(autoencoder=True, input_size=(256, 512))
    assert chosen_overlap(spec, None) == 64
    assert chosen_overlap(make_detector(autoencoder=True).spec, None) == 48


def test_files_are_predicted_in_tiles_with_a_verdict(tmp_path):
    detector = make_detector()
    images = [picture(150, 140, seed) for seed in (0, 1)]
    tasks = []
    for i, image in enumerate(images):
        file = tmp_path / f"{i}.png"
        file.write_bytes(encoded(image, "PNG"))
        tasks.append(Task(file, tmp_path / f"{i}_heatmap.png"))
    scores = sorted(detect_tiled(detector, image).score for image in images)
    # Just above the lower one.
    judging = replace(detector, threshold=choose_threshold(scores, 0.7))
    for of, verdicts in ((judging, ["0", "1"]), (detector, ["", ""])):
        failed = predict_files(
            of, tasks, tmp_path / "s.csv", low=0.0, high=1.0, complain=print, overlap=32
        )
        assert failed == 0
        rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
        rows.sort(key=lambda row: float(row["score"]))
        assert [row["anomalous"] for row in rows] == verdicts
        assert [float(row["score"]) for row in rows] == pytest.approx(scores, rel=1e-5)


@pytest.mark.slow
def test_no_size_is_compiled_for(caplog):
    detector = make_detector()
    detect_tiled(detector, picture(140, 300))
    compiled = jitted_detect._cache_size()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for size in ((128, 128), (200, 131), (90, 257), (301, 150)):
            detect_tiled(detector, picture(*size))
        assert "Compiling" not in caplog.text
        jax.jit(lambda x: x + 1)(np.float32(1))
        assert "Compiling" in caplog.text  # or it would not have been seen
    assert jitted_detect._cache_size() == compiled
