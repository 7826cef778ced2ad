"""Regions against a search pixel by pixel, and their polygons against their pixels."""

from collections import deque

import numpy as np
import pytest
from matplotlib.path import Path
from scipy import ndimage

from efficientad_jax.detection.regions.components import find_regions, region_mask
from efficientad_jax.detection.regions.polygons import outer_boundary


def smooth_map(seed=0, size=(40, 55), sigma=1.5):
    noise = np.random.default_rng(seed).normal(size=size)
    return ndimage.gaussian_filter(noise, sigma).astype(np.float32)


def searched(mask):
    """The connected pixels of a mask, each as a list of rows and columns."""
    left = set(map(tuple, np.argwhere(mask).tolist()))
    while left:
        queue, pixels = deque([left.pop()]), []
        while queue:
            y, x = queue.popleft()
            pixels.append((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            queue.extend(near)
        yield np.array(pixels)


@pytest.mark.parametrize("area", [1, 7, 60])
@pytest.mark.parametrize("seed", range(3))
def test_regions_are_those_of_a_search_pixel_by_pixel(seed, area):
    anomaly_map = smooth_map(seed)
    threshold = float(np.quantile(anomaly_map, 0.8))
    expected = {}
    for pixels in searched(anomaly_map >= threshold):
        if len(pixels) >= area:
            (top, left), (bottom, right) = pixels.min(0).tolist(), pixels.max(0).tolist()
            box = (left, top, right - left + 1, bottom - top + 1)
            y, x = pixels.mean(0) + 0.5
            values = anomaly_map[pixels[:, 0], pixels[:, 1]].astype(np.float64)
            expected[box] = (len(pixels), (x, y), values.max(), values.mean())
    regions = find_regions(anomaly_map, threshold, area)
    assert len(regions) == len(expected)
    assert {region.box for region in regions} == set(expected)
    for region in regions:
        size, centroid, peak, mean = expected[region.box]
        assert (region.area, region.peak_score) == (size, peak)
        assert region.centroid == pytest.approx(centroid)
        assert region.mean_score == pytest.approx(mean)
        assert region.polygon is None
        assert "polygon" not in region.as_dict()
    peaks = [region.peak_score for region in regions]
    assert peaks == sorted(peaks, reverse=True)
    assert len(regions) >= (area < 60)
    mask = region_mask(anomaly_map, threshold, area)
    assert mask.sum() == sum(region.area for region in regions)
    assert (anomaly_map[mask] >= threshold).all()


def test_pixels_that_touch_at_a_corner_are_one_region_and_the_threshold_itself_counts():
    anomaly_map = np.zeros((4, 5), np.float32)
    anomaly_map[0, 1] = anomaly_map[1, 2] = 1.0
    anomaly_map[3, 4] = 2.0
    first, second = find_regions(anomaly_map, 1.0)
    assert (first.box, first.area, first.centroid) == ((4, 3, 1, 1), 1, (4.5, 3.5))
    assert (second.box, second.area, second.centroid) == ((1, 0, 2, 2), 2, (2.0, 1.0))
    assert find_regions(anomaly_map, 1.0, 2) == (second,)
    assert find_regions(anomaly_map, 2.5) == ()
    assert not region_mask(anomaly_map, 2.5).any()


@pytest.mark.parametrize("seed", range(4))
def test_a_polygon_surrounds_the_pixels_of_its_region_and_its_holes(seed):
    anomaly_map = smooth_map(seed, sigma=1.0)
    threshold = float(np.quantile(anomaly_map, 0.6))
    height, width = anomaly_map.shape
    centers = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1)
    regions = find_regions(anomaly_map, threshold, polygons=True)
    parts = list(searched(anomaly_map >= threshold))
    assert len(regions) == len(parts) > 3
    with_holes = 0
    for region in regions:
        (pixels,) = (
            p
            for p in parts
            if len(p) == region.area and _box_of(p) == region.box and _same(p, region)
        )
        mask = np.zeros((height, width), bool)
        mask[pixels[:, 0], pixels[:, 1]] = True
        filled = ndimage.binary_fill_holes(mask)
        inside = Path([*region.polygon, region.polygon[0]]).contains_points(centers.reshape(-1, 2))
        np.testing.assert_array_equal(inside.reshape(height, width), filled)
        with_holes += int(filled.sum() > mask.sum())
        corners = np.array([*region.polygon, region.polygon[0]])
        steps = np.diff(corners, axis=0)
        # Edges are horizontal and vertical in turn.
        assert (np.count_nonzero(steps, axis=1) == 1).all()
        assert (np.flatnonzero(steps.ravel()) % 2 == [i % 2 for i in range(len(steps))]).all()
        x, y = corners[:, 0], corners[:, 1]
        clockwise = np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2  # y points downward
        assert clockwise == filled.sum()
    assert with_holes


def _box_of(pixels):
    (top, left), (bottom, right) = pixels.min(0).tolist(), pixels.max(0).tolist()
    return left, top, right - left + 1, bottom - top + 1


def _same(pixels, region):
    return np.allclose(pixels.mean(0)[::-1] + 0.5, region.centroid)


def test_a_boundary_begins_at_the_first_pixel_and_is_moved_by_the_offset():
    mask = np.array([[False, True], [True, False]])
    # One polygon, which touches itself where the pixels do.
    expected = ((1, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2), (0, 1), (1, 1))
    assert outer_boundary(mask) == expected
    moved = outer_boundary(np.ones((2, 3), bool), (10, 20))
    assert moved == ((10, 20), (13, 20), (13, 22), (10, 22))
