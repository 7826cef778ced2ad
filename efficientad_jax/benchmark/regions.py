"""Times the region step: from an anomaly map to boxes, areas, centroids and scores."""

import time
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from efficientad_jax.detection.regions.components import find_regions
from efficientad_jax.detection.regions.scores import region_score

_THRESHOLD = 0.5


def time_regions(side: int, count: int, rounds: int) -> Iterator[str]:
    """Times the step in each of its ways; yields lines with medians and quartiles.

    Args:
      side: height and width of the map in pixels.
      count: number of regions.
      rounds: number of calls of each way.
    """
    anomaly_map = synthetic_map(side, count)
    regions = find_regions(anomaly_map, _THRESHOLD)
    area = int(np.median([region.area for region in regions]))
    yield f"{side}x{side} pixels, {len(regions)} regions of {area} pixels in the median"
    ways = {
        "regions": lambda: find_regions(anomaly_map, _THRESHOLD),
        "regions with polygons": lambda: find_regions(anomaly_map, _THRESHOLD, polygons=True),
        "score for the pixel threshold": lambda: region_score(anomaly_map, area),
    }
    for name, way in ways.items():
        way()
        milliseconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            way()
            milliseconds.append(1000 * (time.perf_counter() - start))
        low, middle, high = np.quantile(milliseconds, [0.25, 0.5, 0.75])
        yield f"{name:<30} {middle:.2f} ms ({low:.2f}-{high:.2f})"


def synthetic_map(side: int, count: int) -> Float32[np.ndarray, "side side"]:
    """A smooth map whose part above 0.5 is a number of round regions, evenly spread."""
    columns = int(np.ceil(np.sqrt(count)))
    spacing = side / columns
    rows, across = np.indices((side, side)) / spacing
    cells = np.floor(rows) * columns + np.floor(across)
    distance = np.hypot(rows % 1 - 0.5, across % 1 - 0.5)
    bumps = np.where(cells < count, np.exp(-((distance / 0.25) ** 2)), 0)
    noise = np.random.default_rng(0).normal(0, 0.01, (side, side))
    return (np.clip(bumps, 0, 0.9) + noise * (bumps > 0.6)).astype(np.float32)
