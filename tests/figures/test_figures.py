"""Tests the values that the figures show, and their position and brightness."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from efficientad_jax.detection.detector import Detection
from efficientad_jax.detection.threshold import RegionRule, Threshold
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation import paper_results
from efficientad_jax.figures.drawing import save_figure
from efficientad_jax.figures.hard_features import count_hard_features, draw_hard_features
from efficientad_jax.figures.latency import Point, draw_latency
from efficientad_jax.figures.maps import draw_maps
from efficientad_jax.figures.receptive_field import (
    absolute_gradient,
    draw_receptive_field,
    mean_feature_map,
    receptive_window,
)
from efficientad_jax.figures.regions import RegionsOfImage, draw_regions
from efficientad_jax.networks.model import create_networks
from efficientad_jax.networks.pdn import PatchDescriptionNetwork, Size
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.networks.teacher import Teacher, save_teacher
from tests.helpers.command import command
from tests.helpers.detectors import random_params
from tests.helpers.images import uint8_images

SIZE = (48, 48)
CHANNELS = 3


def random_network(size: Size) -> tuple[PatchDescriptionNetwork, dict]:
    network = PatchDescriptionNetwork(size, CHANNELS, convolution="direct")
    return network, random_params(network, SIZE)


# Receptive field.


@pytest.mark.slow
@pytest.mark.parametrize(("size", "channels"), [("small", range(CHANNELS)), ("medium", [0])])
def test_the_gradient_is_zero_outside_33_by_33_and_nowhere_inside(
    size: Size, channels: Sequence[int]
) -> None:
    network, params = random_network(size)
    position, image_size = (1, 2), (40, 44)
    gradient = absolute_gradient(
        network, params, uint8_images(1, image_size), position=position, channels=channels
    )
    rows, columns = receptive_window(*position)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (33, 33)
    inside = np.zeros(image_size, bool)
    inside[rows, columns] = True
    np.testing.assert_array_equal(gradient[~inside], 0)
    assert np.all(gradient[inside] > 0)


@pytest.mark.slow
def test_the_gradient_is_how_much_the_feature_changes() -> None:
    network, params = random_network("small")
    network = network.clone(convolution="auto")  # faster, and rounding is no matter here
    images = uint8_images(2, (44, 44))
    position, channel = (1, 1), 1
    gradient = absolute_gradient(network, params, images, position=position, channels=[channel])
    np.testing.assert_array_equal(
        gradient, absolute_gradient(network, params, images, channels=[channel])
    )
    y, x, step = 22, 27, 1e-2
    slopes = []
    for image in images:
        normalized = np.asarray(normalize_images(to_unit_range(jnp.asarray(image))))
        changed = np.repeat(normalized[None], 6, axis=0)
        for color in range(3):
            changed[2 * color, y, x, color] += step
            changed[2 * color + 1, y, x, color] -= step
        outputs = network.apply(params, jnp.asarray(changed))
        features = np.asarray(outputs, np.float64)[:, *position, channel]
        slopes.append(np.abs(features[::2] - features[1::2]) / (2 * step))
    assert gradient[y, x] == pytest.approx(np.mean(slopes), rel=0.02)


def test_a_mean_feature_map_is_the_mean_of_the_maps() -> None:
    network, params = random_network("small")
    images = uint8_images(3, SIZE)
    features = network.apply(params, normalize_images(to_unit_range(jnp.asarray(images))))
    actual = mean_feature_map(network, params, images, channel=2)
    np.testing.assert_allclose(actual, np.asarray(features)[..., 2].mean(0), rtol=1e-4, atol=1e-5)


# Hard features.


@pytest.mark.slow
def test_hard_features_are_counted_per_patch() -> None:
    networks = create_networks("small", CHANNELS, (128, 128), convolution="direct")
    teacher, student = (random_params(network, SIZE) for network in networks[:2])
    images = uint8_images(2, SIZE)
    for p_hard in (0.0, 0.9):
        counts = count_hard_features(networks, teacher, student, images=images, p_hard=p_hard)
        for image, patch_counts in zip(images, counts, strict=True):
            x = normalize_images(to_unit_range(jnp.asarray(image)))[None]
            teacher_features, student_features = (
                np.asarray(jax.jit(partial(network.apply, params))(x)[0], np.float64)
                for network, params in ((networks.teacher, teacher), (networks.student, student))
            )
            squared = (teacher_features - student_features[..., :CHANNELS]) ** 2
            hard = squared >= np.quantile(squared, p_hard)
            np.testing.assert_array_equal(patch_counts, hard.sum(-1))


# Drawings.


def detection(value: float, size: tuple[int, int], has_global: bool = True) -> Detection:
    values = np.full(size, value, np.float32)
    return Detection(value, values, values + 1, values + 2 if has_global else None)


def test_maps_are_drawn_on_one_scale() -> None:
    images = [uint8_images(1, size)[0] for size in ((8, 12), (10, 6))]
    detections = [
        detection(value, image.shape[:2]) for value, image in zip((0.1, 0.4), images, strict=True)
    ]
    figure = draw_maps(images, detections)
    rows = np.array(figure.axes[:8]).reshape(2, 4)
    assert [axis.get_title() for axis in rows[0]] == ["image", "local", "global", "combined"]
    for row, image, result in zip(rows, images, detections, strict=True):
        shown = [axis.images[0] for axis in row]
        np.testing.assert_array_equal(shown[0].get_array(), image)
        for drawn, expected in zip(
            shown[1:], (result.local_map, result.global_map, result.anomaly_map), strict=True
        ):
            np.testing.assert_array_equal(drawn.get_array(), expected)
            assert drawn.get_clim() == (0, pytest.approx(0.4))
    assert draw_maps(images, detections, high=0.3).axes[1].images[0].get_clim() == (0, 0.3)
    without = draw_maps(images[:1], [detection(0.1, (8, 12), has_global=False)])
    assert [axis.get_title() for axis in without.axes[:2]] == ["image", "combined"]
    np.testing.assert_array_equal(without.axes[1].images[0].get_array(), np.float32(0.1))
    with pytest.raises(InputError, match="above 0"):
        draw_maps(images, detections, high=0.0)
    with pytest.raises(InputError, match="no images"):
        draw_maps([], [])


def test_regions_are_drawn_as_boxes_next_to_true_defects() -> None:
    rule = RegionRule(Threshold(0.5, 0.05, 0.01, 0.2, 40), 2, ())
    anomaly_map = np.zeros((8, 12), np.float32)
    anomaly_map[2:5, 3:9] = 1.0
    found = Detection(1.0, anomaly_map, anomaly_map, None, rule)
    image = uint8_images(1, (8, 12))[0]
    shown = [RegionsOfImage(f"{i}", image, found, anomaly_map > 0) for i in range(6)]
    shown += [RegionsOfImage("6", image, found._replace(anomaly_map=0 * anomaly_map), None)]
    figure = draw_regions(shown)
    assert len(figure.axes) == 10
    for axis in figure.axes[:6]:
        (box,) = axis.patches
        assert (box.get_xy(), box.get_width(), box.get_height()) == ((2.5, 1.5), 6, 3)
        assert len(axis.collections) == 1
    assert not figure.axes[6].patches
    assert not figure.axes[6].collections
    assert [axis.get_title() for axis in figure.axes] == [*"0123456", "", "", ""]
    with pytest.raises(InputError, match="no images"):
        draw_regions([])
    with pytest.raises(InputError, match="no pixel threshold"):
        draw_regions([shown[0]._replace(detection=found._replace(region_rule=None))])


@pytest.mark.parametrize(("padding", "first"), [(False, 14.5), (True, 0)])
def test_masks_are_drawn_at_the_centers_of_their_patches(padding: bool, first: float) -> None:
    images = uint8_images(2, SIZE)
    side = 12 if padding else 4
    counts = {name: np.full((2, side, side), i) for i, name in enumerate(("step 1", "step 2"), 1)}
    figure = draw_hard_features(images, counts, CHANNELS, padding=padding)
    axes = np.array(figure.axes[:6]).reshape(2, 3)
    assert [axis.get_title() for axis in axes[0]] == ["image", "step 1", "step 2"]
    for row in axes:
        for i, axis in enumerate(row[1:], 1):
            (mask,) = axis.images
            np.testing.assert_array_equal(mask.get_array(), i)
            assert mask.get_extent() == [first, first + 4 * side, first + 4 * side, first]
            assert mask.get_clim() == (0, 2)
    # The first patch of an unpadded network is centered on the middle of its 33 pixels.
    if not padding:
        rows, _ = receptive_window(0, 0)
        assert first + 2 == (rows.start + rows.stop) / 2


def test_the_receptive_field_is_framed() -> None:
    gradient = np.random.default_rng(0).random(SIZE, np.float32)
    window = (slice(4, 37), slice(12, 45))
    images = uint8_images(3, SIZE)
    figure = draw_receptive_field(gradient, window, images, feature_map=gradient[:8, :8])
    left, middle, right = figure.axes[:3]
    (frame,) = left.patches
    assert (frame.get_y(), frame.get_x()) == (3.5, 11.5)
    assert (frame.get_height(), frame.get_width()) == (33, 33)
    np.testing.assert_allclose(middle.images[0].get_array(), images.mean(0) / 255)
    np.testing.assert_array_equal(right.images[0].get_array(), gradient[:8, :8])


def test_methods_are_drawn_at_their_latency_and_auroc() -> None:
    figure = draw_latency({"mine": Point(3.5, 94.5, 0.2)}, "an abacus")
    (axis,) = figure.axes
    texts = {text.get_text().replace("\n", " "): text.xy for text in axis.texts}
    assert texts.pop("mine") == (3.5, 94.5)
    methods = paper_results.OTHER_METHODS | {
        f"EfficientAD-{size[0].upper()}": m for size, m in paper_results.EFFICIENT_AD.items()
    }
    assert texts == {name: (m.latency.mean, m.detection.mean) for name, m in methods.items()}
    assert "ours (an abacus)" in axis.get_legend_handles_labels()[1]


@pytest.mark.slow
def test_a_figure_has_the_format_of_its_name(tmp_path: Path) -> None:
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
    for suffix, start in starts.items():
        for name in ("a", "b"):
            save_figure(draw_latency({}, ""), tmp_path / (name + suffix))
        content = (tmp_path / ("a" + suffix)).read_bytes()
        assert content.startswith(start)
        assert content == (tmp_path / ("b" + suffix)).read_bytes()
    with pytest.raises(InputError, match=r"\.tiff"):
        save_figure(draw_latency({}, ""), tmp_path / "figure.tiff")


@pytest.mark.slow
def test_the_command_draws_a_receptive_field(tmp_path: Path) -> None:
    for i, image in enumerate(uint8_images(1, SIZE)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    # Its few channels have few gradients.
    network = PatchDescriptionNetwork("small", 4)
    teacher = tmp_path / "teacher.safetensors"
    save_teacher(teacher, Teacher("small", 4, random_params(network, (64, 64)), {}))
    output = tmp_path / "figures" / "field.svg"
    given = (f"--teacher={teacher}", f"--output={output}")
    # This command computes longer than it compiles.
    optimized = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    result = command("figures", "receptive_field", tmp_path / "0.png", *given, **optimized)
    assert result.returncode == 0, result.stderr
    assert "mean of 1 images" in output.read_text()
    result = command("figures", "receptive", tmp_path, f"--output={output}")
    assert result.returncode == 2
    assert "error: figure 'receptive': expected one of latency, " in result.stderr
