"""Times the AU-PRO over large maps and compares it with two other ways to compute it.

The literal definition computes, at each of a number of thresholds, the overlap of every region and
the false positive rate from all maps. The usual exact way sorts all pixels.
"""

import resource
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from efficientad_jax.evaluation.region_overlap import PRO_LIMIT, pro_curve

Maps = list[Float32[np.ndarray, "_ _"]]
Masks = list[Bool[np.ndarray, "_ _"]]


def time_au_pro(count: int, side: int, thresholds: int) -> Iterator[str]:
    """Times each way once; yields lines with areas, times and memory.

    Args:
      count: number of maps; every second one has defects.
      side: height and width of the maps in pixels.
      thresholds: number of thresholds of the literal definition.
    """
    maps, masks = synthetic_maps(count, side)
    held = _peak_gb()
    yield f"{count} maps of {side}x{side} pixels"
    own_seconds, line = _time("this project, exact", own_area, maps, masks=masks)
    yield line
    yield f"{'':<28}{_peak_gb() - held:.2f} GB in addition to the maps"
    ways: dict[str, Callable[[Maps, Masks], float]] = {
        "all pixels sorted, exact": area_by_sorting,
        f"literal, {thresholds} thresholds": partial(area_by_definition, thresholds=thresholds),
    }
    for name, area in ways.items():
        seconds, line = _time(name, area, maps, masks=masks)
        yield line
        yield f"{'':<28}{seconds / own_seconds:.1f} times as long"


def synthetic_maps(count: int, side: int) -> tuple[Maps, Masks]:
    """Noise as smooth as a detector's maps; every second map has defects with higher values."""
    rng = np.random.default_rng(0)
    maps: Maps = []
    masks: Masks = []
    for i in range(count):
        mask = np.zeros((side, side), bool)
        for _ in range(3 * (i % 2)):
            top, left, height, width = rng.integers(8, side // 4, 4)
            mask[3 * top :, 3 * left :][:height, :width] = True
        noise = np.asarray(ndimage.zoom(rng.random((64, 64), np.float32), side / 64, order=1))
        maps.append((noise + 0.3 * mask).astype(np.float32))
        masks.append(mask)
    return maps, masks


def own_area(maps: Maps, masks: Masks) -> float:
    """The AU-PRO as this project computes it."""
    curve = pro_curve(maps, masks)
    assert curve is not None
    return curve.area


def area_by_sorting(maps: Maps, masks: Masks) -> float:
    """The exact AU-PRO, computed by sorting all pixels."""
    false_positives, overlaps, regions = [], [], 0
    for labels, count in _components(masks):
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        weights = np.concatenate([[0.0], 1 / sizes[1:]])
        overlaps.append(weights[labels].ravel())
        false_positives.append(labels.ravel() == 0)
        regions += count
    scores = np.concatenate([scores.ravel() for scores in maps])
    order = np.argsort(scores)[::-1]
    rates = np.cumsum(np.concatenate(false_positives)[order])
    means = np.cumsum(np.concatenate(overlaps)[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), scores.size - 1)
    return _area(rates[last] / rates[-1], means[last] / regions)


def area_by_definition(maps: Maps, masks: Masks, thresholds: int) -> float:
    """The AU-PRO by its literal definition, at equidistant thresholds."""
    components = _components(masks)
    highest, lowest = max(scores.max() for scores in maps), min(scores.min() for scores in maps)
    normal = sum(int((~mask).sum()) for mask in masks)
    rates, means = [], []
    for threshold in np.linspace(highest, lowest, thresholds):
        false_positives, overlaps = 0, []
        for scores, (labels, count) in zip(maps, components, strict=True):
            marked = scores >= threshold
            false_positives += int(np.sum(marked & (labels == 0)))
            for region in range(1, count + 1):
                inside = labels == region
                overlaps.append(np.sum(marked & inside) / np.sum(inside))
        rates.append(false_positives / normal)
        means.append(np.mean(overlaps))
    return _area(np.array(rates), np.array(means))


def _time(
    name: str, area: Callable[[Maps, Masks], float], maps: Maps, *, masks: Masks
) -> tuple[float, str]:
    """Seconds, and a line with name, seconds and area."""
    start = time.perf_counter()
    value = area(maps, masks)
    seconds = time.perf_counter() - start
    return seconds, f"{name:<28}{seconds:.2f} s, AU-PRO {value:.6f}"


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _components(masks: Masks) -> list[tuple[np.ndarray, int]]:
    return [ndimage.label(mask, np.ones((3, 3))) for mask in masks]  # pyright: ignore


def _area(rates: np.ndarray, means: np.ndarray) -> float:
    rates, means = np.append(0, rates), np.append(0, means)
    at_limit = np.interp(PRO_LIMIT, rates, means)
    below = rates < PRO_LIMIT
    rates, means = np.append(rates[below], PRO_LIMIT), np.append(means[below], at_limit)
    return float(np.trapezoid(means, rates)) / PRO_LIMIT
