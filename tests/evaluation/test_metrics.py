import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.metrics import evaluate, pixel_auroc
from efficientad_jax.evaluation.region_overlap import pro_curve, spro_curve


def _split(seed=0, good=9, anomalous=7):
    """Scores with ties, maps of different sizes, masks on the anomalous images."""
    rng = np.random.default_rng(seed)
    labels = np.array([0] * good + [1] * anomalous)
    scores = np.round(rng.normal(size=labels.size) + labels, 1).astype(np.float32)
    maps, masks = [], []
    for label in labels:
        shape = tuple(rng.integers(5, 12, 2))
        mask = np.zeros(shape, bool)
        if label:
            mask[1:4, 2:5] = True
        maps.append(np.round(rng.normal(size=shape) + mask, 1).astype(np.float32))
        masks.append(mask if label else None)
    return scores, labels, maps, masks


def _flat(maps, masks):
    values = np.concatenate([m.ravel() for m in maps])
    marks = [np.zeros(m.shape, bool) if k is None else k for m, k in zip(maps, masks, strict=True)]
    return np.concatenate([k.ravel() for k in marks]), values


def test_image_auroc_is_the_share_of_rightly_ordered_pairs():
    scores, labels, _, _ = _split()
    good, anomalous = scores[labels == 0], scores[labels == 1]
    wins = [1.0 if a > g else 0.5 if a == g else 0.0 for a in anomalous for g in good]
    assert 0 < np.mean(wins) < 1
    assert evaluate(scores, labels).image_auroc == pytest.approx(np.mean(wins), abs=1e-12)


def test_average_precision_is_the_mean_precision_at_each_step_of_recall():
    scores, labels, _, _ = _split()
    expected, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores >= threshold
        new_recall = np.sum(labels[flagged]) / np.sum(labels)
        expected += (new_recall - recall) * np.mean(labels[flagged])
        recall = new_recall
    metrics = evaluate(scores, labels)
    assert metrics.image_average_precision == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


def test_best_f1_is_the_best_over_all_thresholds_and_reached_at_its_own():
    scores, labels, _, _ = _split()
    reached = {t: f1_score(labels, scores >= t) for t in scores.tolist()}
    metrics = evaluate(scores, labels)
    assert metrics.image_best_f1 == pytest.approx(max(reached.values()), abs=1e-12)
    assert reached[metrics.image_best_f1_threshold] == pytest.approx(metrics.image_best_f1)


@pytest.mark.parametrize("seed", range(5))
def test_ignored_pixels_count_as_if_the_maps_did_not_have_them(seed):
    scores, labels, maps, masks = _split(seed)
    rng = np.random.default_rng(seed)
    ignored = [rng.random(m.shape) < 0.3 for m in maps]
    metrics = evaluate(scores, labels, maps, masks=masks, ignored=ignored)
    marks, values = _flat(maps, masks)
    kept = ~np.concatenate([out.ravel() for out in ignored])
    expected = roc_auc_score(marks[kept], values[kept])
    assert metrics.pixel_auroc == pytest.approx(expected, abs=1e-12)
    # Whatever the ignored values are, and whether or not masks mark them, AU-PRO is the same.
    loud = [np.where(out, 9, m).astype(np.float32) for m, out in zip(maps, ignored, strict=True)]
    wide = [None if m is None else m | out for m, out in zip(masks, ignored, strict=True)]
    other = evaluate(scores, labels, loud, masks=wide, ignored=ignored)
    assert other == metrics
    assert metrics.au_pro is not None
    assert evaluate(scores, labels, loud, masks=masks).au_pro != pytest.approx(metrics.au_pro)


@pytest.mark.parametrize("seed", range(5))
def test_pixel_auroc_equals_scikit_learn_on_flattened_maps(seed):
    scores, labels, maps, masks = _split(seed)
    expected = roc_auc_score(*_flat(maps, masks))
    metrics = evaluate(scores, labels, maps, masks=masks)
    assert metrics.pixel_auroc == pytest.approx(expected, abs=1e-12)
    assert metrics.pixel_images == labels.size
    assert metrics.anomalous_without_mask == 0


def test_anomalous_images_without_a_marked_pixel_count_in_the_image_figures_only():
    scores, labels, maps, masks = _split()
    masks[-1] = None
    masks[-2] = np.zeros_like(masks[-2])
    metrics = evaluate(scores, labels, maps, masks=masks)
    assert metrics.pixel_auroc == pytest.approx(roc_auc_score(*_flat(maps[:-2], masks[:-2])))
    assert metrics.pixel_auroc != pytest.approx(roc_auc_score(*_flat(maps, masks)))
    assert metrics.image_auroc == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.anomalous_without_mask == 2
    assert metrics.pixel_images == labels.size - 2


def test_an_empty_mask_of_a_good_image_is_the_same_as_none():
    scores, labels, maps, masks = _split()
    filled = [np.zeros(m.shape, bool) if k is None else k for m, k in zip(maps, masks, strict=True)]
    assert evaluate(scores, labels, maps, masks=filled) == evaluate(
        scores, labels, maps, masks=masks
    )


def test_pixel_auroc_stays_exact_over_many_pixels_and_large_values():
    rng = np.random.default_rng(0)
    maps = [(1e6 * rng.normal(size=(200, 300))).astype(np.float32) for _ in range(4)]
    masks = [rng.random((200, 300)) < 0.3 for _ in maps]
    assert pixel_auroc(maps, masks) == pytest.approx(roc_auc_score(*_flat(maps, masks)), abs=1e-12)


def test_each_kind_of_defect_is_set_against_the_good_images():
    scores, labels, _, _ = _split()
    defects = ["good"] * 9 + ["dent"] * 3 + ["scratch"] * 4
    found = evaluate(scores, labels, defects=defects).image_auroc_by_defect
    assert list(found) == ["dent", "scratch"]
    dents, scratches = slice(0, 12), np.r_[0:9, 12:16]
    assert found["dent"] == pytest.approx(roc_auc_score(labels[dents], scores[dents]))
    assert found["scratch"] == pytest.approx(roc_auc_score(labels[scratches], scores[scratches]))
    assert evaluate(scores, labels).image_auroc_by_defect == {}


def test_au_pro_is_over_the_images_of_the_other_pixel_figure():
    scores, labels, maps, masks = _split()
    masks[-1] = np.zeros_like(masks[-1])
    curve = pro_curve(maps[:-1], masks[:-1])
    assert curve is not None
    assert evaluate(scores, labels, maps, masks=masks).au_pro == curve.area


def test_au_spro_is_the_mean_over_kinds_of_defect_each_with_the_good_images():
    scores, labels, maps, masks = _split()
    defects = ["good"] * 9 + ["logical"] * 3 + ["structural"] * 4
    regions = [[] if mask is None else [(mask, 4.0)] for mask in masks]
    metrics = evaluate(scores, labels, maps, masks=masks, defects=defects, regions=regions)
    kinds = {"logical": [*range(12)], "structural": [*range(9), *range(12, 16)]}
    for kind, members in kinds.items():
        curve = spro_curve([maps[i] for i in members], [regions[i] for i in members])
        assert curve is not None
        assert metrics.au_spro_by_defect[kind] == curve.area
    assert metrics.au_spro == pytest.approx(np.mean(list(metrics.au_spro_by_defect.values())))
    assert metrics.au_spro_reason is None
    without = evaluate(scores, labels, maps, masks=masks, defects=defects)
    assert without.au_spro is None
    assert "saturation" in str(without.au_spro_reason)
    with pytest.raises(InputError, match="found 15 lists of regions, expected one for each"):
        evaluate(scores, labels, maps, masks=masks, defects=defects, regions=regions[1:])


@pytest.mark.parametrize(("label", "missing"), [(0, "no anomalous image"), (1, "no good image")])
def test_one_class_gives_none_and_a_reason(label, missing):
    scores = np.array([0.1, 0.2], np.float32)
    metrics = evaluate(scores, np.full(2, label))
    assert metrics.image_auroc is None
    assert metrics.image_average_precision is None
    assert metrics.image_best_f1 is None
    assert metrics.image_best_f1_threshold is None
    assert missing in str(metrics.image_reason)
    assert (metrics.good_images, metrics.anomalous_images) == (2 * (1 - label), 2 * label)


def test_no_images_gives_none_and_a_reason():
    metrics = evaluate(np.empty(0, np.float32), np.empty(0, int), [], masks=[])
    assert metrics.image_auroc is None
    assert metrics.pixel_auroc is None
    assert "no test images" in str(metrics.image_reason)


def test_without_masks_the_pixel_figure_is_none_with_a_reason():
    scores, labels, maps, _ = _split()
    metrics = evaluate(scores, labels, maps)
    assert metrics.pixel_auroc is metrics.au_pro is None
    assert "mask" in str(metrics.pixel_reason)
    assert metrics.anomalous_without_mask == 7
    assert metrics.image_auroc is not None
    assert "maps" in str(evaluate(scores, labels).pixel_reason)


def test_masks_that_mark_everything_give_none_with_a_reason():
    metrics = evaluate(
        np.ones(1), np.ones(1, int), [np.ones((2, 2), np.float32)], masks=[np.ones((2, 2), bool)]
    )
    assert metrics.pixel_auroc is metrics.au_pro is None
    assert "every pixel" in str(metrics.pixel_reason)


def test_the_figures_survive_json():
    scores, labels, maps, masks = _split()
    masks[-1] = None
    metrics = evaluate(scores, labels, maps, masks=masks)
    restored = json.loads(json.dumps(metrics.as_dict(), allow_nan=False))
    assert restored == metrics.as_dict()
    assert restored["anomalous_without_mask"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, y, m, k: s.__setitem__(2, np.nan), "1 of 16 are not finite"),
        (lambda s, y, m, k: y.__setitem__(0, 3), "found 3, expected 0"),
        (lambda s, y, m, k: m.pop(), "15 maps and 16 masks"),
        (lambda s, y, m, k: m[4].__setitem__((0, 0), np.inf), "test image 4"),
        (lambda s, y, m, k: k.__setitem__(9, np.ones((2, 3), bool)), "test image 9: is 2 x 3"),
        (lambda s, y, m, k: k.__setitem__(1, np.ones(m[1].shape, bool)), "labeled good"),
    ],
)
def test_unusable_input_is_named(change, message):
    scores, labels, maps, masks = _split()
    change(scores, labels, maps, masks)
    with pytest.raises(InputError, match=message):
        evaluate(scores, labels, maps, masks=masks)
