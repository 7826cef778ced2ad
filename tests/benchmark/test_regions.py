"""The benchmark of the region step times what it says."""

import re

from efficientad_jax.benchmark.regions import synthetic_map, time_regions
from efficientad_jax.detection.regions.components import find_regions


def test_the_map_has_so_many_regions() -> None:
    for count in (1, 7, 20):
        assert len(find_regions(synthetic_map(128, count), 0.5)) == count


def test_each_way_has_a_line() -> None:
    lines = list(time_regions(64, 4, rounds=2))
    assert lines[0].startswith("64x64 pixels, 4 regions of ")
    assert len(lines) == 4
    assert all(re.search(r" \d+\.\d\d ms \(\d+\.\d\d-\d+\.\d\d\)$", line) for line in lines[1:])
