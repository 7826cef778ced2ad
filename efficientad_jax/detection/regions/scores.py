"""The score of an image for the choice of the pixel threshold.

It is the highest threshold at which the image has a region. A threshold above it finds none.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from efficientad_jax.detection.regions.components import label_pixels

# By which factor the number of highest pixels grows until enough of them touch each other.
_GROWTH = 4


def region_score(anomaly_map: Float[np.ndarray, "h w"], smallest_area: int = 1) -> float:
    """The highest threshold at which a map has a region, exactly: a value of the map.

    For an area of 1 this is the maximum of the map. For a larger one the highest pixels are marked,
    more and more of them, until enough of them touch. The threshold lies among the values in those
    parts of the map, and is found there by bisection.

    Args:
      anomaly_map: combined map at the image's own size, with finite values.
      smallest_area: number of pixels of the smallest region, at least 1. A map with fewer pixels
        never has a region. Its lowest value is returned, so that a threshold chosen by it is not
        too low.
    """
    if smallest_area >= anomaly_map.size:
        return float(anomaly_map.min())
    best = -math.inf
    for part in _large_parts(anomaly_map, smallest_area):
        values = np.unique(part[part > best])
        if _has_region(part, values, 0, smallest_area):
            best = _highest(part, values, smallest_area)
    return best


def _large_parts(
    anomaly_map: Float[np.ndarray, "h w"], smallest_area: int
) -> list[Float[np.ndarray, "_ _"]]:
    """Parts of the map, one of which holds the region that vanishes last; -inf outside of each."""
    count = smallest_area
    while True:
        highest = np.partition(anomaly_map, anomaly_map.size - count, axis=None)
        labels, parts = label_pixels(anomaly_map >= highest[-count])
        large = np.flatnonzero(np.bincount(labels.ravel(), minlength=parts + 1) >= smallest_area)
        if large[large > 0].size:
            break
        count = min(_GROWTH * count, anomaly_map.size)
    windows = ndimage.find_objects(labels)
    return [
        np.where(labels[windows[i - 1]] == i, anomaly_map[windows[i - 1]], -np.inf)
        for i in large[large > 0].tolist()
    ]


def _has_region(
    part: Float[np.ndarray, "h w"], values: Float[np.ndarray, " v"], index: int, area: int
) -> bool:
    """Whether so many pixels of at least `values[index]` touch; False beyond the last value."""
    if index >= len(values):
        return False
    labels, _ = label_pixels(part >= values[index])
    areas = np.bincount(labels.ravel())
    return bool((areas[1:] >= area).any())


def _highest(part: Float[np.ndarray, "h w"], values: Float[np.ndarray, " v"], area: int) -> float:
    """The highest of the rising values at which there is a region; there is one at the first."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        if _has_region(part, values, middle, area):
            low = middle
        else:
            high = middle
    return float(values[low])
