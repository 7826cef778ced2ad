"""AU-PRO and AU-sPRO against their definition, written out, and against ADEval's."""

import itertools

import numpy as np
import pytest
from adeval.au_pro import calculate_au_pro
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from efficientad_jax.evaluation.region_overlap import pro_curve, spro_curve


def _touching(mask):
    """The 8-connected components, by flooding."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        component, front = set(), {left.pop()}
        while front:
            component |= front
            around = {(y + i, x + j) for y, x in front for i in (-1, 0, 1) for j in (-1, 0, 1)}
            front = around & left
            left -= front
        found.append(np.zeros(mask.shape, bool))
        found[-1][tuple(np.array(sorted(component)).T)] = True
    return found


def _area_by_definition(maps, regions, limit):
    """Thresholds at every score, the area under the lines between the points, up to the limit."""
    outside = [
        one[~np.any([mask for mask, _ in of_image], axis=0)] if of_image else one.ravel()
        for one, of_image in zip(maps, regions, strict=True)
    ]
    outside = np.concatenate(outside)
    points = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([one.ravel() for one in maps]))[::-1]:
        overlaps = [
            min(np.sum(one[mask] >= threshold) / area, 1.0)
            for one, of_image in zip(maps, regions, strict=True)
            for mask, area in of_image
        ]
        points.append((np.mean(outside >= threshold), np.mean(overlaps)))
    area = 0.0
    for (left, low), (right, high) in itertools.pairwise(points):
        if left < limit and right > left:
            end = min(right, limit)
            at_end = low + (high - low) * (end - left) / (right - left)
            area += (end - left) * (low + at_end) / 2
    return area / limit


def _split(seed, images=5, sizes=(6, 14), defect=0.5):
    """Maps of many sizes with more or fewer equal scores, and masks of the first three."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(images):
        shape = tuple(rng.integers(*sizes, 2))
        mask = rng.random(shape) < 0.15
        noise = np.round(rng.normal(size=shape) + defect * mask, rng.integers(0, 4))
        noise[0] = -0.0
        maps.append(noise.astype(np.float32))
        masks.append(mask if i < 3 and mask.any() else None)
    return maps, masks


def _components(masks):
    return [
        [] if mask is None else [(one, float(one.sum())) for one in _touching(mask)]
        for mask in masks
    ]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.05, 0.3, 1.0]))
def test_au_pro_is_the_area_of_its_definition(seed, limit):
    maps, masks = _split(seed)
    curve = pro_curve(maps, masks, limit)
    assert curve is not None
    expected = _area_by_definition(maps, _components(masks), limit)
    assert curve.area == pytest.approx(expected, abs=1e-9)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.05, 0.3, 1.0]))
def test_au_spro_is_the_area_of_its_definition(seed, limit):
    maps, masks = _split(seed)
    rng = np.random.default_rng(seed)
    regions = [
        [(mask, max(1.0, area * rng.uniform(0.2, 1))) for mask, area in of_image]
        for of_image in _components(masks)
    ]
    # Two defects may mark the same pixels.
    of_image = next(of_image for of_image in regions if of_image)
    of_image.append((of_image[0][0], 1.5))
    curve = spro_curve(maps, regions, limit)
    assert curve is not None
    assert curve.area == pytest.approx(_area_by_definition(maps, regions, limit), abs=1e-9)


@pytest.mark.parametrize("limit", [0.05, 0.3])
def test_au_pro_is_that_of_adeval(limit):
    rng = np.random.default_rng(0)
    masks = [np.kron(rng.random((8, 8)) > 0.8, np.ones((5, 5))) > 0, np.zeros((40, 40), bool)]
    # ADEval needs maps of one size without equal scores.
    scores = rng.permutation(3200).reshape(2, 40, 40) + 900.5 * np.array(masks)
    maps = list(scores.astype(np.float32))
    normal = np.sort(np.concatenate([one[~mask] for one, mask in zip(maps, masks, strict=True)]))
    expected, _ = calculate_au_pro(masks, maps, limit, num_thresholds=normal.size)
    curve = pro_curve(maps, masks, limit)
    assert curve is not None
    assert 0.3 < curve.area < 0.9
    # It puts thresholds only at the scores of the normal pixels, beginning below the highest, so
    # that the overlap is read half a normal pixel late throughout.
    late = np.diff(_mean_overlaps(maps, masks, normal[[-1, -1 - round(limit * normal.size)]]))
    assert curve.area == pytest.approx(expected - late[0] / (2 * limit * normal.size), abs=1e-9)


def _mean_overlaps(maps, masks, thresholds):
    parts = [
        [np.mean(one[mask] > threshold) for threshold in thresholds]
        for one, of_image in zip(maps, _components(masks), strict=True)
        for mask, _ in of_image
    ]
    return np.mean(parts, axis=0)


def test_one_region_up_to_a_rate_of_one_is_the_roc_of_its_pixels():
    rng = np.random.default_rng(0)
    mask = np.zeros((60, 50), bool)
    mask[10:30, 5:20] = True
    one = np.round(rng.normal(size=mask.shape) + mask, 2).astype(np.float32)
    curve = pro_curve([one], [mask], 1.0)
    assert curve is not None
    assert curve.area == pytest.approx(roc_auc_score(mask.ravel(), one.ravel()), abs=1e-12)


def test_pixels_that_touch_at_a_corner_are_one_region():
    mask = np.zeros((9, 9), bool)
    mask[2, 2] = mask[3, 3] = mask[6, 6] = True
    one = np.zeros((9, 9), np.float32)
    one[2, 2] = one[6, 6] = 1
    curve = pro_curve([one], [mask], 0.5)
    assert curve is not None
    # Half of the one and all of the other are found first, then nothing tells the pixels apart.
    assert curve.overlaps[-1] == pytest.approx((0.75 + 1) / 2)


def test_the_points_lie_on_the_curve_and_end_at_the_limit():
    maps, masks = _split(3, images=4, sizes=(30, 40), defect=1.5)
    curve = pro_curve(maps, masks, 0.3)
    assert curve is not None
    rates, overlaps = curve.false_positive_rates, curve.overlaps
    assert (rates[0], overlaps[0], rates[-1]) == (0, 0, 0.3)
    assert (np.diff(rates) >= 0).all()
    assert (np.diff(overlaps) >= 0).all()
    normal = np.concatenate(
        [one.ravel() if mask is None else one[~mask] for one, mask in zip(maps, masks, strict=True)]
    )
    for threshold in np.unique(normal)[::-1]:
        rate = np.mean(normal >= threshold)
        if rate < 0.3:
            exact = _mean_overlaps(maps, masks, [np.nextafter(threshold, -np.inf)])[0]
            assert np.interp(rate, rates, overlaps) == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize("mask", [None, np.zeros((4, 4), bool), np.ones((4, 4), bool)])
def test_without_defect_or_without_normal_pixels_there_is_no_curve(mask):
    one = np.ones((4, 4), np.float32)
    assert pro_curve([one], [mask]) is None
    assert spro_curve([one], [[] if mask is None else [(mask, 3.0)] * int(mask.any())]) is None


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-40, 3e38])
def test_equal_scores_everywhere_give_the_diagonal(value):
    masks = [np.eye(5) > 0, None]
    curve = pro_curve([np.full((5, 5), value, np.float32)] * 2, masks, 0.3)
    assert curve is not None
    assert curve.area == pytest.approx(0.15)
    np.testing.assert_allclose(curve.overlaps, curve.false_positive_rates)
