"""AU-PRO and AU-sPRO: how much of each defect is found at low rates of false positives.

Per-region overlap: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.1.
Saturated: Bergmann et al., "Beyond Dents and Scratches", IJCV 2022, section 4.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, UInt32
from scipy import ndimage

# Up to which false positive rate the curves count, in the papers named above.
PRO_LIMIT = 0.3
SPRO_LIMIT = 0.05

# A connected defect touches itself at corners too, as in MVTec's evaluation code.
_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)

# A score is looked up by the upper and the lower half of the bits of a float32.
_HALF = 16
_BINS = 1 << _HALF

MaskedRegions = Sequence[tuple[Bool[np.ndarray, "_ _"], float]]


class DefectPixels(NamedTuple):
    """Pixels of all regions of some images. The weights of each region sum to 1.

    Attributes:
      scores: their anomaly scores.
      weights: how much of its region is found with each of them, those of higher scores being
        found before.
    """

    scores: Float32[np.ndarray, "d"]
    weights: Float64[np.ndarray, "d"]


class OverlapCurve(NamedTuple):
    """Mean overlap of the regions against the false positive rate, and the area under it.

    Attributes:
      area: exact, up to the limit, divided by it: in [0, 1].
      false_positive_rates: of some points of the curve, rising from 0 to the limit.
      overlaps: of the same points, in [0, 1].
    """

    area: float
    false_positive_rates: Float64[np.ndarray, "p"]
    overlaps: Float64[np.ndarray, "p"]


def pro_curve(
    maps: Sequence[Float32[np.ndarray, "_ _"]],
    masks: Sequence[Bool[np.ndarray, "_ _"] | None],
    limit: float = PRO_LIMIT,
    *,
    ignored: Sequence[Bool[np.ndarray, "_ _"]] | None = None,
) -> OverlapCurve | None:
    """Per-region overlap against false positive rate; its area is AU-PRO.

    A region is a set of defect pixels of one image that touch each other, corners included. Its
    overlap at a threshold is the part of its pixels that score at least the threshold; the curve
    has the mean over the regions of all images, so that small defects count as much as large ones,
    against the part of the pixels outside all defects, of all images, that score at least it.
    There is a point for every distinct score, and straight lines between them.

    Args:
      maps: anomaly maps, of any sizes; finite.
      masks: True on defects, of the maps' shapes; None for an image without defect.
      limit: of the false positive rate, in (0, 1].
      ignored: True on the pixels of each map that do not count; the masks mark none of them.

    Returns:
      The curve, or None where there is no defect pixel or no other.
    """
    found = [
        _pixels_of_components(scores, mask)
        for scores, mask in zip(maps, masks, strict=True)
        if mask is not None and mask.any()
    ]
    return _overlap_curve(maps, masks, found, limit, ignored=ignored)


def spro_curve(
    maps: Sequence[Float32[np.ndarray, "_ _"]],
    regions: Sequence[MaskedRegions],
    limit: float = SPRO_LIMIT,
    *,
    ignored: Sequence[Bool[np.ndarray, "_ _"]] | None = None,
) -> OverlapCurve | None:
    """Saturated per-region overlap against false positive rate; its area is AU-sPRO.

    As `pro_curve`, but each region is given, connected or not, with the number of pixels that have
    to be found of it: its overlap is the number found divided by that one, and at most 1.

    Args:
      maps: anomaly maps, of any sizes; finite.
      regions: of each image, those defects: a mask of the map's shape that marks something, and
        an area in pixels. They may overlap. An area below 1 is found with the first pixel.
      limit: of the false positive rate, in (0, 1].
      ignored: see `pro_curve`.

    Returns:
      The curve, or None where there is no region or no pixel outside all of them.
    """
    found = [
        _pixels_of_region(scores[mask], area)
        for scores, of_image in zip(maps, regions, strict=True)
        for mask, area in of_image
    ]
    masks = [np.any([m for m, _ in of_image], axis=0) if of_image else None for of_image in regions]
    return _overlap_curve(maps, masks, found, limit, ignored=ignored)


def _pixels_of_components(
    scores: Float32[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]
) -> tuple[DefectPixels, int]:
    labels, count = ndimage.label(mask, _EIGHT_NEIGHBOURS)  # pyright: ignore
    inside = np.asarray(labels, np.intp)[mask] - 1
    return DefectPixels(scores[mask], 1 / np.bincount(inside)[inside]), count


def _pixels_of_region(scores: Float32[np.ndarray, "p"], area: float) -> tuple[DefectPixels, int]:
    area = max(area, 1.0)
    found = np.minimum(np.arange(scores.size + 1), area) / area
    return DefectPixels(np.sort(scores)[::-1], np.diff(found)), 1


def _overlap_curve(  # long: one algorithm, whose comments are its proof
    maps: Sequence[Float32[np.ndarray, "_ _"]],
    masks: Sequence[Bool[np.ndarray, "_ _"] | None],
    found: Sequence[tuple[DefectPixels, int]],
    limit: float,
    *,
    ignored: Sequence[Bool[np.ndarray, "_ _"]] | None,
) -> OverlapCurve | None:
    """The curve of some regions, without sorting the pixels outside them, by far the most.

    Where n of the N normal pixels lie between two points of the curve, the area there is n / N
    times the mean of the two overlaps. So the whole area is the mean over the normal pixels of the
    overlap at their scores, that at equal scores counting half, and only the highest of them, up
    to the limit, count. Which those are is found by counting scores by the upper half of their
    bits first and then, within the bin where the limit lies, by the lower half.

    In addition to the maps and masks it takes about 40 bytes per defect pixel and per pixel of one
    image.
    """
    if not found:
        return None
    defects = _sort_and_accumulate(found)
    counts = np.zeros(_BINS, np.int64)
    for normal in _normal_scores(maps, masks, ignored):
        counts += np.bincount(_keys(normal) >> _HALF, minlength=_BINS)
    total = int(counts.sum())
    if not total:
        return None
    allowed = limit * total
    before = np.concatenate([[0], np.cumsum(counts[::-1])])  # In the i highest bins.
    bins_needed = int(np.searchsorted(before, allowed))
    last = _BINS - bins_needed

    counts_in_last = np.zeros(_BINS, np.int64)
    area = 0.0
    for normal in _normal_scores(maps, masks, ignored):
        keys = _keys(normal)
        bins = keys >> _HALF
        counts_in_last += np.bincount(keys[bins == last] & (_BINS - 1), minlength=_BINS)
        above = np.sort(normal[bins > last])  # Sorted keys keep the binary searches in cache.
        area += float(np.sum(defects.overlap_above(above) + defects.overlap_from(above))) / 2

    # The distinct scores of the last bin, from the highest. The limit may cut the last of them.
    steps = np.flatnonzero(counts_in_last)[::-1]
    ends = before[bins_needed - 1] + np.cumsum(counts_in_last[steps])
    starts = ends - counts_in_last[steps]
    counted = starts < allowed
    steps, starts, ends = steps[counted], starts[counted], ends[counted]
    scores = _scores((last << _HALF) + steps)
    part = np.minimum((allowed - starts) / (ends - starts), 1.0)
    overlap = defects.overlap_above(scores)
    next_overlap = overlap + part * (defects.overlap_from(scores) - overlap)
    area += float(np.sum(part * (ends - starts) * (overlap + next_overlap) / 2))

    # The points drawn are those at the lower edges of the bins before the limit.
    edges = np.arange(_BINS - 1, last, -1)
    overlaps = np.concatenate([[0.0], defects.overlap_from(_scores(edges << _HALF))])
    rates = before[:bins_needed] / total
    changed = np.flatnonzero((np.diff(rates) > 0) | (np.diff(overlaps) > 0)) + 1
    drawn = np.concatenate([[0], changed])
    return OverlapCurve(
        area / allowed,
        np.concatenate([rates[drawn], [limit]]),
        np.concatenate([overlaps[drawn], next_overlap[-1:]]),
    )


class _SortedDefects(NamedTuple):
    """Scores of all defect pixels, rising, and the mean overlap without the first i of them."""

    scores: Float32[np.ndarray, "d"]
    overlaps: Float64[np.ndarray, "d_and_1"]

    def overlap_above(self, thresholds: Float32[np.ndarray, "t"]) -> Float64[np.ndarray, "t"]:
        """Of the pixels that score more than each threshold."""
        return self.overlaps[np.searchsorted(self.scores, thresholds, side="right")]

    def overlap_from(self, thresholds: Float32[np.ndarray, "t"]) -> Float64[np.ndarray, "t"]:
        """Of the pixels that score at least each threshold."""
        return self.overlaps[np.searchsorted(self.scores, thresholds, side="left")]


def _sort_and_accumulate(found: Sequence[tuple[DefectPixels, int]]) -> _SortedDefects:
    regions = sum(count for _, count in found)
    scores = np.concatenate([pixels.scores for pixels, _ in found])
    weights = np.concatenate([pixels.weights for pixels, _ in found])
    order = np.argsort(scores)
    overlaps = np.concatenate([np.cumsum(weights[order][::-1])[::-1], [0.0]])
    return _SortedDefects(scores[order], overlaps / regions)


def _normal_scores(
    maps: Sequence[Float32[np.ndarray, "_ _"]],
    masks: Sequence[Bool[np.ndarray, "_ _"] | None],
    ignored: Sequence[Bool[np.ndarray, "_ _"]] | None,
) -> Iterator[Float32[np.ndarray, "_"]]:
    """As `scores_of_normal_pixels`, without -0.0 among them."""
    for scores in scores_of_normal_pixels(maps, masks, ignored):
        yield scores + np.float32(0)


def scores_of_normal_pixels(
    maps: Sequence[Float32[np.ndarray, "_ _"]],
    masks: Sequence[Bool[np.ndarray, "_ _"] | None],
    ignored: Sequence[Bool[np.ndarray, "_ _"]] | None,
) -> Iterator[Float32[np.ndarray, "_"]]:
    """Scores of the pixels that count outside of all defects, image by image."""
    left_out = [None] * len(maps) if ignored is None else ignored
    for scores, mask, out in zip(maps, masks, left_out, strict=True):
        if out is not None:
            mask = out if mask is None else mask | out
        yield scores.ravel() if mask is None else scores[~mask]


def _keys(scores: Float32[np.ndarray, "s"]) -> UInt32[np.ndarray, "s"]:
    """Integers in the order of the scores."""
    bits = scores.view(np.uint32)
    return bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))


def _scores(keys: Int[np.ndarray, "k"]) -> Float32[np.ndarray, "k"]:
    """The scores that have these keys."""
    bits = keys.astype(np.uint32)
    return (bits ^ np.where(bits >> 31, np.uint32(0x80000000), np.uint32(0xFFFFFFFF))).view(
        np.float32
    )
