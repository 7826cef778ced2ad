"""AU-PRO and AU-sPRO against their definition, written out, and against ADEval's."""

import numpy as np
import pytest
from adeval.au_pro import calculate_au_pro
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from efficientad_jax.region_overlap import pro_curve, spro_curve


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
    for (left, low), (right, high) in zip(points, points[1:], strict=False):
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


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.05, 0.3, 1.0]))
def test_au_pro_is_the_area_of_its_definition(seed, limit):
    maps, masks = _split(seed)
    curve = pro_curve(maps, masks, limit)
    assert curve is not None
    expected = _area_by_definition(maps, _components(masks), limit)
    assert curve.area == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30, deadline=None, derandomize=True)
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


def test_au_pro_is_that_of_adeval():
    # ADEval puts thresholds at the scores of normal pixels alone, which moves the area by no more
    # than half of 1 / (normal pixels x limit), and takes maps of one size without equal scores.
    rng = np.random.default_rng(0)
    shape = (1500, 1500)
    masks = [ndimage.zoom(rng.random((15, 15)) > 0.9, 100, order=0), np.zeros(shape, bool)]
    maps = [rng.permutation(masks[0].size * 2)[: masks[0].size].reshape(shape) for _ in masks]
    maps = [(one + 400_000.0 * mask).astype(np.float32) for one, mask in zip(maps, masks)]
    _check_adeval(maps, masks)


def _check_adeval(maps, masks):
    normal = sum(int((~mask).sum()) for mask in masks)
    assert 0.5 / (normal * 0.3) < 1e-6
    expected, _ = calculate_au_pro(masks, maps, num_thresholds=normal)
    curve = pro_curve(maps, masks)
    assert curve is not None
    assert 0.3 < curve.area < 0.9
    assert curve.area == pytest.approx(expected, abs=1e-6)
