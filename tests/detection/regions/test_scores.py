"""The score for the pixel threshold against a search over all thresholds."""

import numpy as np
import pytest

from efficientad_jax.detection.regions.components import find_regions
from efficientad_jax.detection.regions.scores import region_score
from tests.detection.regions.test_components import smooth_map


def searched(anomaly_map, area):
    """The highest value of the map at which there is a region, by trying all of them."""
    for value in np.unique(anomaly_map)[::-1].tolist():
        if find_regions(anomaly_map, value, area):
            return value
    raise AssertionError("no region at any threshold")


@pytest.mark.parametrize("area", [1, 2, 5, 30, 119, 120])
@pytest.mark.parametrize("sigma", [0.0, 1.0, 3.0])
def test_the_score_is_the_highest_threshold_with_a_region(area, sigma):
    for seed in range(2):
        anomaly_map = smooth_map(seed, size=(10, 12), sigma=sigma)
        assert region_score(anomaly_map, area) == searched(anomaly_map, area)


@pytest.mark.parametrize("area", [1, 4, 17])
def test_equal_values_are_found_together(area):
    rng = np.random.default_rng(0)
    anomaly_map = (rng.integers(0, 4, (9, 11)) / 4).astype(np.float32)
    assert region_score(anomaly_map, area) == searched(anomaly_map, area)
    flat = np.full((5, 6), 0.25, np.float32)
    assert region_score(flat, area) == 0.25


def test_a_map_with_fewer_pixels_has_its_lowest_value():
    anomaly_map = smooth_map(size=(4, 5))
    assert region_score(anomaly_map, 21) == region_score(anomaly_map, 20) == anomaly_map.min()
