"""Metrics of how well scores and maps separate good from anomalous images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.lazy_maps import Chosen
from efficientad_jax.evaluation.region_overlap import (
    MaskedRegions,
    OverlapCurve,
    pro_curve,
    scores_of_normal_pixels,
    spro_curve,
)

NO_SATURATION_AREAS = "the dataset defines no saturation areas"


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The metrics of one test split. An undefined metric is None, with the reason next to it.

    Attributes:
      image_auroc: area under the ROC curve of the image scores, in [0, 1].
      image_average_precision: average precision of the image scores, in [0, 1].
      image_best_f1: F1 at the best threshold, in [0, 1]. The threshold is chosen on the test
        images themselves, so this is an upper bound that a deployed threshold does not reach.
      image_best_f1_threshold: the lowest such threshold; a score >= it counts as anomalous.
      image_reason: why the image metrics are None.
      image_auroc_by_defect: AU-ROC of each kind of defect against the good images; empty where
        the kinds are not given or there is no good image.
      pixel_auroc: area under the ROC curve over all pixels of the images counted in
        `pixel_images`, in [0, 1].
      au_pro: area under the curve of the per-region overlap, up to a false positive rate of 0.3,
        over the same pixels, in [0, 1].
      pixel_reason: why `pixel_auroc` and `au_pro` are None.
      au_spro: area under the curve of the saturated per-region overlap, up to a false positive
        rate of 0.05, in [0, 1]: the mean over the kinds of defect, as in published results.
      au_spro_by_defect: that area for each kind of defect together with the good images.
      au_spro_reason: why `au_spro` is None.
      good_images: number of images with label 0.
      anomalous_images: number of images with label 1.
      pixel_images: number of images in the pixel metrics: the good ones, and the anomalous ones
        whose mask marks a defect.
      anomalous_without_mask: number of anomalous images left out of the pixel metrics because
        their mask is missing or empty.
      pro_curve: the curve whose area is `au_pro`; it is no part of `as_dict` or of comparisons.
    """

    image_auroc: float | None
    image_average_precision: float | None
    image_best_f1: float | None
    image_best_f1_threshold: float | None
    image_reason: str | None
    image_auroc_by_defect: dict[str, float]
    pixel_auroc: float | None
    au_pro: float | None
    pixel_reason: str | None
    au_spro: float | None
    au_spro_by_defect: dict[str, float]
    au_spro_reason: str | None
    good_images: int
    anomalous_images: int
    pixel_images: int
    anomalous_without_mask: int
    pro_curve: OverlapCurve | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, float | int | str | dict[str, float] | None]:
        """The metrics as plain Python values in the order above, ready for `json.dumps`."""
        return {name: value for name, value in vars(self).items() if name != "pro_curve"}


def evaluate(  # long: lists every metric once
    scores: Float[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    maps: Sequence[Float32[np.ndarray, "_ _"]] | None = None,
    *,
    masks: Sequence[Bool[np.ndarray, "_ _"] | None] | None = None,
    defects: Sequence[str] | None = None,
    regions: Sequence[MaskedRegions] | None = None,
    ignored: Sequence[Bool[np.ndarray, "_ _"]] | None = None,
) -> Metrics:
    """Computes all metrics of one test split. `docs/metrics.md` defines them.

    Args:
      scores: one anomaly score per image, higher is more anomalous.
      labels: 0 for good, 1 for anomalous.
      maps: one anomaly map per image, at the image's own size; None computes the image metrics
        only. They are read one at a time, and several times.
      masks: one mask per image, True on defects, of its map's shape; None for an image (or for
        all) without a mask.
      defects: kind of defect of each image; None treats all defects as one kind.
      regions: as `ImageSet.regions`, None where the dataset does not define saturation areas.
      ignored: True on the pixels of each map that no pixel metric counts, whether defect or not;
        None where all count.

    Returns:
      The metrics. Undefined ones (only one class, no masks) are None, with a reason.

    Raises:
      InputError: lengths or shapes differ, a label is not 0 or 1, a score or map is not finite,
        or the mask of a good image marks a defect.
    """
    _check_images(scores, labels)
    kinds = [""] * labels.size if defects is None else list(defects)
    for name, values in (("kinds of defect", kinds), ("lists of regions", regions)):
        if values is not None and len(values) != labels.size:
            raise InputError(
                f"Test images: found {len(values)} {name}, expected one for each of the "
                f"{labels.size} images."
            )
    image_metrics = _image_metrics(scores, labels, None if defects is None else kinds)
    if maps is None:
        pixel_metrics = _PixelMetrics(None, None, "no anomaly maps", 0, 0)
    else:
        all_masks = [None] * len(maps) if masks is None else list(masks)
        _check_pixels(labels, maps, all_masks)
        if ignored is not None:
            pairs = zip(all_masks, ignored, strict=True)
            all_masks = [None if mask is None else mask & ~out for mask, out in pairs]
        pixel_metrics = _pixel_metrics(labels, maps, all_masks, ignored=ignored)
    au_spros, au_spro_reason = {}, NO_SATURATION_AREAS
    if maps is not None and regions is not None:
        au_spros = _au_spro_by_defect(labels, kinds, maps, regions=regions, ignored=ignored)
        au_spro_reason = None if au_spros else pixel_metrics.reason
    curve = pixel_metrics.pro_curve
    return Metrics(
        image_auroc=image_metrics.auroc,
        image_average_precision=image_metrics.average_precision,
        image_best_f1=image_metrics.best_f1,
        image_best_f1_threshold=image_metrics.best_f1_threshold,
        image_reason=image_metrics.reason,
        image_auroc_by_defect=image_metrics.auroc_by_defect,
        pixel_auroc=pixel_metrics.auroc,
        au_pro=None if curve is None else curve.area,
        pixel_reason=pixel_metrics.reason,
        au_spro=float(np.mean(list(au_spros.values()))) if au_spros else None,
        au_spro_by_defect=au_spros,
        au_spro_reason=au_spro_reason,
        good_images=int(np.sum(labels == 0)),
        anomalous_images=int(np.sum(labels == 1)),
        pixel_images=pixel_metrics.images,
        anomalous_without_mask=pixel_metrics.anomalous_without_mask,
        pro_curve=curve,
    )


class _ImageMetrics(NamedTuple):
    """The metrics of the image scores; `reason` says why they are None."""

    auroc: float | None
    average_precision: float | None
    best_f1: float | None
    best_f1_threshold: float | None
    auroc_by_defect: dict[str, float]
    reason: str | None


class _PixelMetrics(NamedTuple):
    """The metrics of the maps against the masks; `reason` says why they are None."""

    auroc: float | None
    pro_curve: OverlapCurve | None
    reason: str | None
    images: int
    anomalous_without_mask: int


def _image_metrics(
    scores: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"], kinds: Sequence[str] | None
) -> _ImageMetrics:
    good, anomalous = int(np.sum(labels == 0)), int(np.sum(labels == 1))
    if not (good and anomalous):
        return _ImageMetrics(None, None, None, None, {}, _missing_class(good, anomalous))
    members = {} if kinds is None else _with_good(labels, kinds)
    return _ImageMetrics(
        float(roc_auc_score(labels, scores)),
        float(average_precision_score(labels, scores)),
        *_best_f1(scores, labels),
        {kind: float(roc_auc_score(labels[i], scores[i])) for kind, i in members.items()},
        None,
    )


def _pixel_metrics(
    labels: Int[np.ndarray, "n"],
    maps: Sequence[Float32[np.ndarray, "_ _"]],
    masks: Sequence[Bool[np.ndarray, "_ _"] | None],
    *,
    ignored: Sequence[Bool[np.ndarray, "_ _"]] | None,
) -> _PixelMetrics:
    marked = [mask is not None and bool(mask.any()) for mask in masks]
    without_mask = int(np.sum((labels == 1) & ~np.array(marked, bool)))
    if not any(marked):
        reason = "no test image has a mask that marks a defect"
        return _PixelMetrics(None, None, reason, 0, without_mask)
    counted = [i for i, has_defect in enumerate(marked) if has_defect or labels[i] == 0]
    counted_maps = Chosen(maps, counted)
    counted_masks = [masks[i] if marked[i] else None for i in counted]
    left_out = None if ignored is None else [ignored[i] for i in counted]
    auroc = pixel_auroc(counted_maps, counted_masks, left_out)
    return _PixelMetrics(
        auroc,
        pro_curve(counted_maps, counted_masks, ignored=left_out),
        "every pixel is marked as a defect" if auroc is None else None,
        len(counted),
        without_mask,
    )


def _with_good(
    labels: Int[np.ndarray, "n"], kinds: Sequence[str]
) -> dict[str, Int[np.ndarray, "_"]]:
    """Indices of the images of each kind of defect and of all good images."""
    names = np.array(kinds, dtype=object)
    defects = sorted({kind for kind, label in zip(kinds, labels, strict=True) if label == 1})
    return {
        kind: np.flatnonzero((labels == 0) | ((labels == 1) & (names == kind))) for kind in defects
    }


def _au_spro_by_defect(
    labels: Int[np.ndarray, "n"],
    kinds: Sequence[str],
    maps: Sequence[Float32[np.ndarray, "_ _"]],
    *,
    regions: Sequence[MaskedRegions],
    ignored: Sequence[Bool[np.ndarray, "_ _"]] | None,
) -> dict[str, float]:
    areas = {}
    if ignored is not None:
        regions = [_counted_regions(*pair) for pair in zip(regions, ignored, strict=True)]
    for kind, members in _with_good(labels, kinds).items():
        counted = [int(i) for i in members if labels[i] == 0 or regions[i]]
        left_out = None if ignored is None else [ignored[i] for i in counted]
        curve = spro_curve(Chosen(maps, counted), [regions[i] for i in counted], ignored=left_out)
        if curve is not None:
            areas[kind] = curve.area
    return areas


def _counted_regions(
    regions: MaskedRegions, ignored: Bool[np.ndarray, "_ _"]
) -> list[tuple[Bool[np.ndarray, "_ _"], float]]:
    """The parts of regions that count; of such a part at most all pixels have to be found."""
    parts = [(mask & ~ignored, area) for mask, area in regions]
    return [(mask, min(area, float(mask.sum()))) for mask, area in parts if mask.any()]


def pixel_auroc(
    maps: Sequence[Float32[np.ndarray, "_ _"]],
    masks: Sequence[Bool[np.ndarray, "_ _"] | None],
    ignored: Sequence[Bool[np.ndarray, "_ _"]] | None = None,
) -> float | None:
    """Exact area under the ROC curve over the pixels of all maps.

    This is the probability that a random defect pixel scores above a random normal one; ties
    count half. Only the defect pixels are kept and sorted together. The normal ones, which are by
    far the most, are ranked among them image by image. A ROC curve over all pixels would need
    about 40 bytes per pixel.

    Args:
      maps: float32 anomaly maps, of any sizes.
      masks: True on defects, of the maps' shapes; None for an image without defect.
      ignored: True on the pixels of each map that do not count; the masks mark none of them.

    Returns:
      The area in [0, 1], or None where there is no defect pixel or no normal one.
    """
    marked = [maps[i][mask] for i, mask in enumerate(masks) if mask is not None]
    defects = np.sort(np.concatenate(marked)) if marked else np.empty(0, np.float32)
    normal_pixels = 0
    twice_wins = 0  # Integers stay exact where a float would round after 2^53 pairs.
    for scores in scores_of_normal_pixels(maps, masks, ignored):
        normal = np.sort(scores)  # Sorted keys keep the binary searches in cache.
        normal_pixels += normal.size
        below = np.searchsorted(defects, normal, side="left")
        not_above = np.searchsorted(defects, normal, side="right")
        twice_wins += 2 * defects.size * normal.size - int(below.sum()) - int(not_above.sum())
    if not defects.size or not normal_pixels:
        return None
    return twice_wins / (2 * defects.size * normal_pixels)


def _best_f1(scores: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"]) -> tuple[float, float]:
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    precision, recall = precision[:-1], recall[:-1]  # The last point belongs to no threshold.
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    best = int(np.argmax(f1))
    return float(f1[best]), float(thresholds[best])


def _missing_class(good: int, anomalous: int) -> str:
    if not good and not anomalous:
        return "there are no test images"
    return f"the test images hold no {'anomalous' if good else 'good'} image"


def _check_images(scores: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"]) -> None:
    unknown = sorted(set(np.unique(labels).tolist()) - {0, 1})
    if unknown:
        raise InputError(f"Test labels: found {unknown[0]}, expected 0 (good) or 1 (anomalous).")
    not_finite = int(np.sum(~np.isfinite(scores)))
    if not_finite:
        raise InputError(
            f"Image scores: {not_finite} of {scores.size} are not finite, expected finite "
            "numbers; check that training did not diverge."
        )


def _check_pixels(
    labels: Int[np.ndarray, "n"],
    maps: Sequence[Float32[np.ndarray, "_ _"]],
    masks: Sequence[Bool[np.ndarray, "_ _"] | None],
) -> None:
    if not len(maps) == len(masks) == labels.size:
        raise InputError(
            f"Pixel metrics: found {len(maps)} maps and {len(masks)} masks, expected one of each "
            f"for the {labels.size} test images (a mask may be None)."
        )
    for i, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        if not np.isfinite(scores).all():
            raise InputError(
                f"Anomaly map of test image {i}: holds values that are not finite, expected "
                "finite numbers; check that training did not diverge."
            )
        if mask is None:
            continue
        if mask.shape != scores.shape:
            raise InputError(
                f"Mask of test image {i}: is {mask.shape[0]} x {mask.shape[1]}, expected the size "
                f"of its map, {scores.shape[0]} x {scores.shape[1]}."
            )
        if labels[i] == 0 and mask.any():
            raise InputError(
                f"Mask of test image {i}: marks {int(mask.sum())} defect pixels although the "
                "image is labeled good; correct the label or the mask."
            )
