"""The ways to compute the AU-PRO that are timed compute the same area."""

import re

import pytest

from efficientad_jax.benchmark.au_pro import (
    area_by_definition,
    area_by_sorting,
    own_area,
    synthetic_maps,
    time_au_pro,
)


def test_all_ways_compute_the_same_area():
    maps, masks = synthetic_maps(6, 96)
    assert sum(mask.any() for mask in masks) == 3
    area = own_area(maps, masks)
    assert 0.1 < area < 0.99
    assert area_by_sorting(maps, masks) == pytest.approx(area, rel=1e-6)
    assert area_by_definition(maps, masks, 400) == pytest.approx(area, abs=0.005)


def test_each_way_is_reported_with_its_time_and_area():
    lines = list(time_au_pro(4, 64, 20))
    assert lines[0] == "4 maps of 64x64 pixels"
    matches = [re.match(r"(.+?)  +(\S+) s, AU-PRO (\S+)$", line) for line in lines]
    names = [match[1] for match in matches if match]
    assert names == ["this project, exact", "all pixels sorted, exact", "literal, 20 thresholds"]
    assert sum(line.endswith("times as long") for line in lines) == 2
