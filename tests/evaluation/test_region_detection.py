"""Counts of found defects and false regions against cases that are known."""

import numpy as np
import pytest

from efficientad_jax.detection.threshold import RegionRule, Threshold
from efficientad_jax.evaluation.region_detection import RegionCounts, count_regions

RULE = RegionRule(Threshold(0.5, 0.05, 0.01, 0.2, 40), 3, ())


def image(*rectangles, size=(20, 30), value=1.0):
    pixels = np.zeros(size, np.float32)
    for top, left, height, width in rectangles:
        pixels[top : top + height, left : left + width] = value
    return pixels


def test_defects_are_found_by_one_pixel_and_regions_of_good_images_are_false():
    masks = [
        None,
        None,
        image((0, 0, 5, 5), (10, 10, 4, 4)) > 0,
        image((2, 2, 3, 3), (5, 5, 3, 3)) > 0,  # touch at a corner: one defect
        None,
    ]
    maps = [
        image((1, 1, 2, 2), (10, 20, 3, 3), (18, 0, 1, 2)),  # the last is too small
        image(),
        image((4, 4, 3, 3), (10, 25, 2, 2)),  # one pixel of the first defect
        image((0, 20, 3, 3)),
        image((0, 0, 9, 9)),
    ]
    labels = np.array([0, 0, 1, 1, 1])
    counts, boxes = count_regions(RULE, maps, labels, masks)
    assert counts == RegionCounts(3, 1, 2, 1, 2)
    assert counts.recall == pytest.approx(1 / 3)
    assert counts.false_regions_per_good_image == 1.0
    assert [len(each) for each in boxes] == [2, 0, 2, 1, 1]
    assert boxes[3] == [(20 / 30, 0.0, 3 / 30, 3 / 20)]
    stored = counts.as_dict(RULE)
    assert stored["pixel_threshold"] == 0.5
    assert stored["smallest_area"] == 3
    assert (stored["recall"], stored["found"]) == (counts.recall, 1)


def test_pixels_of_components_below_the_smallest_area_find_nothing():
    mask = image((0, 0, 5, 5)) > 0
    counts, _ = count_regions(RULE, [image((0, 0, 1, 2))], np.array([1]), [mask])
    assert counts == RegionCounts(1, 0, 0, 0, 0)
    assert counts.false_regions_per_good_image is None


def test_without_masks_recall_is_undefined():
    counts, _ = count_regions(RULE, [image()], np.array([0]), [None])
    assert counts == RegionCounts(0, 0, 1, 0, 0)
    assert counts.recall is None
    assert counts.as_dict(RULE)["recall"] is None
