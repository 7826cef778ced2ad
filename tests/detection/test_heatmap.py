import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from efficientad_jax.detection.heatmap import (
    LINE_COLOR,
    color_indices,
    draw_boxes,
    encode_heat,
    overlay,
    palette,
    save_picture,
)
from efficientad_jax.errors import InputError
from efficientad_jax.storage.atomic import write_atomically


def _lightness(rgb):
    """CIE L* of sRGB colors in 0..255."""
    linear = np.asarray(rgb, float) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return 116 * np.cbrt(luminance) - 16


def test_lightness_and_alpha_of_the_palette_grow_evenly():
    lightness = _lightness(palette()[:, :3])
    steps = np.diff(lightness[::15])
    assert np.all(steps > 0)
    assert steps.max() < 2 * steps.min()
    alpha = palette()[:, 3].astype(int)
    assert np.all(np.diff(alpha) >= 0)
    assert (alpha[0], alpha[-1]) == (0, 255)


def test_color_indices_span_the_range_and_clip_outside():
    values = np.array([[-5.0, 1.0, 2.0, 3.0, 99.0]], np.float32)
    np.testing.assert_array_equal(color_indices(values, 1.0, 3.0), [[0, 0, 128, 255, 255]])


def test_overlay_blends_the_color_by_the_value():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 5, 3), np.uint8)
    anomaly_map = rng.uniform(-0.2, 1.2, (4, 5)).astype(np.float32)
    result = overlay(image, anomaly_map, low=0.0, high=1.0, opacity=0.5)
    for y in range(4):
        for x in range(5):
            value = min(max(float(anomaly_map[y, x]), 0.0), 1.0)
            r, g, b, a = palette()[round(255 * value)].astype(float)
            alpha = 0.5 * a / 255
            expected = (1 - alpha) * image[y, x] + alpha * np.array([r, g, b])
            np.testing.assert_allclose(result[y, x], expected, atol=0.51)


def test_normal_regions_and_zero_opacity_leave_the_image_alone():
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    below, clear = np.full((6, 7), 0.9), np.full((6, 7), 9.0)
    np.testing.assert_array_equal(overlay(image, below, low=1.0, high=2.0), image)
    np.testing.assert_array_equal(overlay(image, clear, low=1.0, high=2.0, opacity=0.0), image)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_an_empty_range_is_named(low, high):
    with pytest.raises(InputError, match="expected low < high"):
        overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)), low=low, high=high)


def test_save_picture_puts_the_overlays_next_to_the_image(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    maps = [np.full((6, 7), value, np.float32) for value in (0.0, 0.5)]
    path = tmp_path / "new" / "picture.png"
    save_picture(path, image, maps, low=0.0, high=1.0)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture)
    np.testing.assert_array_equal(pixels[:, :7], image)
    np.testing.assert_array_equal(pixels[:, 7:14], image)
    np.testing.assert_array_equal(pixels[:, 14:], overlay(image, maps[1], low=0.0, high=1.0))
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]


def test_boxes_are_drawn_around_their_pixels_and_kept_inside_the_picture():
    pixels = np.zeros((9, 12, 3), np.uint8)
    draw_boxes(pixels, [(3, 2, 4, 3), (9, 0, 3, 9)], (1, 2, 3))
    lines = (pixels == (1, 2, 3)).all(-1)
    expected = np.zeros((9, 12), bool)
    expected[1:6, 2:8] = True
    expected[2:5, 3:7] = False
    # At the border of the picture the line is inside of the box.
    expected[:, [8, 11]] = expected[[0, 8], 8:] = True
    np.testing.assert_array_equal(lines, expected)
    draw_boxes(pixels[:0], [], (1, 2, 3))


def test_pictures_show_boxes_over_the_maps_only(tmp_path):
    image = np.random.default_rng(0).integers(0, 200, (30, 40, 3), np.uint8)
    maps, boxes = [np.zeros((30, 40), np.float32)], [(5, 6, 7, 8)]
    save_picture(tmp_path / "a.png", image, maps, low=0.0, high=1.0, boxes=boxes)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture)
    np.testing.assert_array_equal(pixels[:, :40], image)
    lines = (pixels[:, 40:] == LINE_COLOR).all(-1)
    assert lines.sum() == 2 * (9 + 8)
    assert lines[5, 4:13].all()


def test_an_encoded_heat_map_keeps_its_colors_under_boxes():
    anomaly_map = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    plain, drawn = (
        np.asarray(
            Image.open(io.BytesIO(encode_heat(anomaly_map, 0.0, 1.0, boxes=boxes))).convert("RGBA")
        )
        for boxes in ([], [(4, 5, 6, 7)])
    )
    lines = (drawn == [*LINE_COLOR, 255]).all(-1)
    assert lines.sum() == 2 * (8 + 7)
    # The last color of the palette is that of the lines.
    others = ~lines & (color_indices(anomaly_map, 0.0, 1.0) < 255)
    np.testing.assert_array_equal(drawn[others], plain[others])


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomically(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_write_into_one_folder_at_once(tmp_path, monkeypatch):
    replace, both = os.replace, threading.Barrier(2, timeout=20)

    def replace_once_both_have_written(source, target):
        both.wait()
        replace(source, target)

    monkeypatch.setattr("os.replace", replace_once_both_have_written)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write_atomically, [tmp_path / "a", tmp_path / "b"], [b"a", b"b"]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"a", "b": b"b"}
