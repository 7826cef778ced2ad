"""How well scores and maps separate good from anomalous images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.region_overlap import MaskedRegions, pro_curve, spro_curve

NO_SATURATION_AREAS = "the dataset defines no saturation areas"


class Metrics(NamedTuple):
    """The figures of one test split; a figure that is not defined is None, beside its reason.

    Attributes:
      image_auroc: area under the ROC curve of the image scores, in [0, 1].
      image_average_precision: average precision of the image scores, in [0, 1].
      image_best_f1: F1 at its best threshold, in [0, 1]. The threshold is chosen on the test
        images themselves, so this is an upper bound, not what a deployed threshold reaches.
      image_best_f1_threshold: the lowest such threshold; a score >= it counts as anomalous.
      image_reason: why the image figures are None.
      image_auroc_by_defect: that area for each kind of defect against the good images; empty
        where kinds are not given or there is no good image.
      pixel_auroc: area under the ROC curve over all pixels of the images counted in
        `pixel_images`, in [0, 1].
      au_pro: area under the curve of the per-region overlap, up to a false positive rate of 0.3,
        over the same pixels, in [0, 1].
      pixel_reason: why `pixel_auroc` and `au_pro` are None.
      au_spro: area under the curve of the saturated per-region overlap, up to a false positive
        rate of 0.05, in [0, 1]: the mean over the kinds of defect, as for the published figures.
      au_spro_by_defect: that area for each kind of defect together with the good images.
      au_spro_reason: why `au_spro` is None.
      good_images: number of images with label 0.
      anomalous_images: number of images with label 1.
      pixel_images: number of images in the pixel figures: the good ones and the anomalous ones
        with a mask that marks something.
      anomalous_without_mask: number of anomalous images left out of the pixel figures because
        their mask is missing or empty.
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

    def as_dict(self) -> dict[str, float | int | str | dict[str, float] | None]:
        """The fields as plain Python values, ready for `json.dumps`."""
        return self._asdict()


def evaluate(
    scores: Float[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    maps: Sequence[Float32[np.ndarray, "_ _"]] | None = None,
    masks: Sequence[Bool[np.ndarray, "_ _"] | None] | None = None,
    defects: Sequence[str] | None = None,
    regions: Sequence[MaskedRegions] | None = None,
) -> Metrics:
    """All figures of one test split. `docs/metrics.md` defines them.

    Args:
      scores: one anomaly score an image, higher is more anomalous.
      labels: 0 for good, 1 for anomalous.
      maps: one anomaly map an image, at the image's own size; None where only the image figures
        are wanted.
      masks: one mask an image, True on defects, of its map's shape; None for an image (or for
        all) without one.
      defects: kind of defect of each image; None takes all for one kind.
      regions: as `ImageSet.regions`, None where the dataset does not define saturation areas.

    Returns:
      The figures. Where they are not defined (one class only, no masks) they are None and the
      reason says why.

    Raises:
      InputError: lengths or shapes differ, a label is not 0 or 1, a score or map is not finite,
        or the mask of a good image marks a defect.
    """
    _check_images(scores, labels)
    kinds = [""] * labels.size if defects is None else list(defects)
    for name, one_each in (("kinds of defect", kinds), ("lists of regions", regions)):
        if one_each is not None and len(one_each) != labels.size:
            raise InputError(
                f"Test images: found {len(one_each)} {name}, expected one for each of the "
                f"{labels.size} images."
            )
    good = int(np.sum(labels == 0))
    anomalous = int(np.sum(labels == 1))
    auroc = average_precision = best_f1 = threshold = image_reason = None
    auroc_by_defect = {}
    if good and anomalous:
        auroc = float(roc_auc_score(labels, scores))
        average_precision = float(average_precision_score(labels, scores))
        best_f1, threshold = _best_f1(scores, labels)
        if defects is not None:
            for kind, members in _with_good(labels, kinds).items():
                auroc_by_defect[kind] = float(roc_auc_score(labels[members], scores[members]))
    else:
        image_reason = _missing_class(good, anomalous)

    pixel_auroc_ = pro = None
    pixel_reason, pixel_images, without_mask = "no anomaly maps", 0, 0
    spros, au_spro_reason = {}, NO_SATURATION_AREAS
    if maps is not None:
        all_masks = [None] * len(maps) if masks is None else list(masks)
        _check_pixels(labels, maps, all_masks)
        marked = [mask is not None and bool(mask.any()) for mask in all_masks]
        without_mask = int(np.sum((labels == 1) & ~np.array(marked, bool)))
        kept = [i for i, has in enumerate(marked) if has or labels[i] == 0]
        if any(marked):
            pixel_images = len(kept)
            kept_maps = [maps[i] for i in kept]
            kept_masks = [all_masks[i] if marked[i] else None for i in kept]
            pixel_auroc_ = pixel_auroc(kept_maps, kept_masks)
            pro = pro_curve(kept_maps, kept_masks)
            pixel_reason = "every pixel is marked as a defect" if pixel_auroc_ is None else None
        else:
            pixel_reason = "no test image has a mask that marks a defect"
        if regions is not None:
            spros = _au_spro_by_defect(labels, kinds, maps, regions)
            au_spro_reason = None if spros else pixel_reason
    return Metrics(
        image_auroc=auroc,
        image_average_precision=average_precision,
        image_best_f1=best_f1,
        image_best_f1_threshold=threshold,
        image_reason=image_reason,
        image_auroc_by_defect=auroc_by_defect,
        pixel_auroc=pixel_auroc_,
        au_pro=None if pro is None else pro.area,
        pixel_reason=pixel_reason,
        au_spro=float(np.mean(list(spros.values()))) if spros else None,
        au_spro_by_defect=spros,
        au_spro_reason=au_spro_reason,
        good_images=good,
        anomalous_images=anomalous,
        pixel_images=pixel_images,
        anomalous_without_mask=without_mask,
    )


def _with_good(
    labels: Int[np.ndarray, "n"], kinds: Sequence[str]
) -> dict[str, Int[np.ndarray, "_"]]:
    """Indices of the images of each kind of defect and of all good images."""
    names = np.array(kinds, dtype=object)
    found = sorted({kind for kind, label in zip(kinds, labels, strict=True) if label == 1})
    return {
        kind: np.flatnonzero((labels == 0) | ((labels == 1) & (names == kind))) for kind in found
    }


def _au_spro_by_defect(
    labels: Int[np.ndarray, "n"],
    kinds: Sequence[str],
    maps: Sequence[Float32[np.ndarray, "_ _"]],
    regions: Sequence[MaskedRegions],
) -> dict[str, float]:
    areas = {}
    for kind, members in _with_good(labels, kinds).items():
        counted = [i for i in members if labels[i] == 0 or regions[i]]
        curve = spro_curve([maps[i] for i in counted], [regions[i] for i in counted])
        if curve is not None:
            areas[kind] = curve.area
    return areas


def pixel_auroc(
    maps: Sequence[Float32[np.ndarray, "_ _"]],
    masks: Sequence[Bool[np.ndarray, "_ _"] | None],
) -> float | None:
    """Exact area under the ROC curve over the pixels of all maps.

    It is the probability that a random defect pixel scores above a random normal one, ties
    counting half. Only the defect pixels are held and sorted at once; the normal ones, by far the
    most, are ranked among them image by image. A ROC curve over all pixels would need about 40
    bytes for each of them.

    Args:
      maps: float32 anomaly maps, of any sizes.
      masks: True on defects, of the maps' shapes; None for an image without defect.

    Returns:
      The area in [0, 1], or None where there is no defect pixel or no normal one.
    """
    pairs = list(zip(maps, masks, strict=True))
    marked = [scores[mask] for scores, mask in pairs if mask is not None]
    defects = np.sort(np.concatenate(marked)) if marked else np.empty(0, np.float32)
    normal_pixels = 0
    twice_wins = 0  # Integers stay exact where a float would round after 2^53 pairs.
    for scores, mask in pairs:
        normal = scores.ravel() if mask is None else scores[~mask]
        normal = np.sort(normal)  # Sorted keys keep the binary searches in cache.
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
