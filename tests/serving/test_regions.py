"""Regions in the answers of the server."""

import io

import httpx2
import numpy as np
import pytest
from PIL import Image

from efficientad_jax.detection.heatmap import LINE_COLOR
from efficientad_jax.serving.application import create_application
from tests.helpers.detectors import random_detector, with_regions
from tests.helpers.images import encoded, picture
from tests.helpers.live_server import running

PIXELS = picture(100, 80, seed=3)
PNG = encoded(PIXELS)


@pytest.fixture(scope="module")
def detector():
    plain = random_detector()
    return with_regions(plain, float(np.quantile(plain(PIXELS).anomaly_map, 0.9)), 10)


@pytest.fixture(scope="module")
def address(detector):
    with running(create_application(detector)) as address:
        yield address


def post(address, query=""):
    return httpx2.post(f"{address}/predict{query}", content=PNG, timeout=60)


@pytest.mark.slow
def test_json_lists_the_regions_unless_they_are_not_wanted(address, detector):
    expected = detector(PIXELS).regions
    assert len(expected) > 1
    found = post(address).json()["regions"]
    assert [tuple(region["box"]) for region in found] == [region.box for region in expected]
    assert [region["area"] for region in found] == [region.area for region in expected]
    assert found[0]["peak_score"] == pytest.approx(expected[0].peak_score)
    assert post(address, "?regions=true").json()["regions"] == found
    assert post(address, "?regions=false").json()["regions"] is None


def test_boxes_are_drawn_on_request(address, detector):
    def heat(query):
        content = post(address, query).content
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))

    plain, drawn = heat("?map=png"), heat("?map=png&regions=true")
    line = np.array([*LINE_COLOR, 255])
    assert not (plain == line).all(-1).any()
    boxes = np.zeros(plain.shape[:2], bool)
    for region in detector(PIXELS).regions:
        x, y, width, height = region.box
        rows, columns = slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)
        around = np.zeros_like(boxes)
        around[rows, columns] = True
        around[rows, columns][1:-1, 1:-1] = False
        boxes |= around
    np.testing.assert_array_equal((drawn == line).all(-1), boxes)


def test_another_value_is_refused(address):
    answer = post(address, "?regions=some")
    assert answer.status_code == 400
    assert answer.json()["error"] == "regions='some': expected true or false"
