"""Times AU-PRO over large maps beside its literal definition.

    python -m experiments.benchmark_metrics

The literal definition reads the overlap of every region and the false positive rate at each
threshold from all maps. It is given a hundred thresholds, far fewer than the exact curve has
points. The other one, exact as ours, is how the curve is usually computed: by sorting all pixels.
"""

import resource
import time
from collections.abc import Callable

import numpy as np
from absl import flags
from jaxtyping import Bool, Float32
from scipy import ndimage

from efficientad_jax.evaluation.region_overlap import PRO_LIMIT, pro_curve
from experiments import run

_MAPS = flags.DEFINE_integer("maps", 100, "how many, half of them with defects", lower_bound=2)
_SIDE = flags.DEFINE_integer("side", 1024, "height and width of the maps", lower_bound=64)
_THRESHOLDS = flags.DEFINE_integer("thresholds", 100, "of the literal definition", lower_bound=2)

Maps = list[Float32[np.ndarray, "_ _"]]
Masks = list[Bool[np.ndarray, "_ _"]]


def main() -> int:
    """Prints areas, times and the highest use of memory."""
    maps, masks = _synthetic_maps(_MAPS.value, _SIDE.value)
    held = _peak_gb()
    print(f"{len(maps)} maps of {_SIDE.value} x {_SIDE.value} pixels")
    ours = _time("this project, exact", _ours, maps, masks)
    print(f"{'':<28}{_peak_gb() - held:.2f} GB beside the maps")
    for name, area in (
        ("all pixels sorted, exact", _by_sorting),
        (f"literal, {_THRESHOLDS.value} thresholds", _literal),
    ):
        print(f"{'':<28}{_time(name, area, maps, masks) / ours:.1f} times as long")
    return 0


def _time(name: str, area: Callable[[Maps, Masks], float], maps: Maps, masks: Masks) -> float:
    start = time.perf_counter()
    found = area(maps, masks)
    seconds = time.perf_counter() - start
    print(f"{name:<28}{seconds:.2f} s, AU-PRO {found:.6f}")
    return seconds


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _synthetic_maps(count: int, side: int) -> tuple[Maps, Masks]:
    """Noise as smooth as the detector's maps, higher on the defects of every second one."""
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


def _ours(maps: Maps, masks: Masks) -> float:
    curve = pro_curve(maps, masks)
    assert curve is not None
    return curve.area


def _components(masks: Masks) -> list[tuple[np.ndarray, int]]:
    return [ndimage.label(mask, np.ones((3, 3))) for mask in masks]  # pyright: ignore


def _by_sorting(maps: Maps, masks: Masks) -> float:
    false_positives, overlaps, regions = [], [], 0
    for labels, count in _components(masks):
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        weights = np.concatenate([[0.0], 1 / sizes[1:]])
        overlaps.append(weights[labels].ravel())
        false_positives.append(labels.ravel() == 0)
        regions += count
    scores = np.concatenate([one.ravel() for one in maps])
    order = np.argsort(scores)[::-1]
    rates = np.cumsum(np.concatenate(false_positives)[order])
    means = np.cumsum(np.concatenate(overlaps)[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), scores.size - 1)
    return _area(rates[last] / rates[-1], means[last] / regions)


def _literal(maps: Maps, masks: Masks) -> float:
    components = _components(masks)
    highest, lowest = max(one.max() for one in maps), min(one.min() for one in maps)
    thresholds = np.linspace(highest, lowest, _THRESHOLDS.value)
    normal = sum(int((~mask).sum()) for mask in masks)
    rates, means = [], []
    for threshold in thresholds:
        false_positives, overlaps = 0, []
        for one, (labels, count) in zip(maps, components, strict=True):
            alarmed = one >= threshold
            false_positives += int(np.sum(alarmed & (labels == 0)))
            for region in range(1, count + 1):
                inside = labels == region
                overlaps.append(np.sum(alarmed & inside) / np.sum(inside))
        rates.append(false_positives / normal)
        means.append(np.mean(overlaps))
    return _area(np.array(rates), np.array(means))


def _area(rates: np.ndarray, means: np.ndarray) -> float:
    rates, means = np.append(0, rates), np.append(0, means)
    at_limit = np.interp(PRO_LIMIT, rates, means)
    before = rates < PRO_LIMIT
    rates, means = np.append(rates[before], PRO_LIMIT), np.append(means[before], at_limit)
    return float(np.trapezoid(means, rates)) / PRO_LIMIT


if __name__ == "__main__":
    run(main)
