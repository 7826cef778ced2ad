import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.metrics import evaluate
from efficientad_jax.evaluation.region_detection import RegionCounts
from efficientad_jax.evaluation.region_overlap import OverlapCurve
from efficientad_jax.evaluation.report import ScoredImages, write_report

_VOID = {"meta", "link", "img", "input", "br", "wbr"}
_ATTACK = '<script>alert("x")</script>'


class _Page(HTMLParser):
    """Collects elements and text, and fails on tags that do not nest."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.text = [], [], {}
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
            self.key = dict(attrs).get("id")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.key:
            self.text.setdefault(self.key, data)

    def all(self, tag, css=None):
        found = [attrs for name, attrs in self.elements if name == tag]
        return [a for a in found if css is None or css in (a.get("class") or "").split()]


def _test_images(good=6, anomalous=5, side=32, seed=0):
    rng = np.random.default_rng(seed)
    n = good + anomalous
    labels = np.array([0] * good + [1] * anomalous)
    mask = np.zeros((side, side), bool)
    mask[4:9, 5:12] = True
    return ScoredImages(
        names=[f"part/{i:03}.png" for i in range(n)],
        labels=labels,
        defects=["scratch" if label else "" for label in labels],
        scores=(rng.normal(size=n) + labels).astype(np.float32),
        images=rng.integers(0, 256, (n, side, side, 3), np.uint8),
        maps=[rng.normal(size=(side, side)).astype(np.float32) for _ in range(n)],
        masks=[mask if label else None for label in labels],
    )


def _write(tmp_path, test, **options):
    metrics = evaluate(test.scores, test.labels, test.maps, masks=test.masks, defects=test.defects)
    arguments = {
        "title": "Parts",
        "baselines": {"Mean brightness": 0.612, "PCA reconstruction": None},
        "facts": {"Data set": "parts"},
    }
    path = tmp_path / "report.html"
    write_report(path, metrics=metrics, test=test, **{**arguments, **options})
    html = path.read_text("utf-8")
    return html, _Page(html), metrics


def _picture(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    html, page, _ = _write(tmp_path, _test_images())
    written = re.sub(r"base64,[A-Za-z0-9+/=]*", "", html)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", written, re.IGNORECASE)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy


def test_text_from_outside_is_escaped(tmp_path):
    test = _test_images()._replace(names=[_ATTACK] * 11, defects=[_ATTACK] * 11)
    html, page, _ = _write(
        tmp_path, test, title=_ATTACK, baselines={_ATTACK: 0.5}, facts={_ATTACK: _ATTACK}
    )
    assert len(page.all("script")) == 2
    assert "<script>alert" not in html
    assert html.count("&lt;script&gt;alert") >= 6


def test_metrics_stand_next_to_the_baselines(tmp_path):
    html, _, metrics = _write(tmp_path, _test_images())
    for name in ("image_auroc", "image_best_f1", "pixel_auroc", "au_pro"):
        assert f">{getattr(metrics, name):.3f}<" in html
    for value in (metrics.image_auroc_by_defect["scratch"], 0.612):
        assert f">{value:.3f}<" in html
    assert "PCA reconstruction" in html


def test_the_pro_curve_is_that_of_the_metrics(tmp_path):
    test = _test_images()
    metrics = evaluate(test.scores, test.labels, test.maps, masks=test.masks)
    points = []
    for height in (1.0, 0.25):
        curve = OverlapCurve(height, np.array([0.0, 0.3]), np.full(2, height))
        other = replace(metrics, pro_curve=curve)
        path = tmp_path / "report.html"
        write_report(path, test, other, title="Parts", baselines={}, facts={})
        rates = [round(100 * float(rate) / 0.3, 2) for rate in np.linspace(0, 0.3, 101)]
        points.append(" ".join(f"{x},{100 - 100 * height}" for x in rates))
        assert points[-1] in path.read_text("utf-8")
    assert points[0] != points[1]


def test_the_script_gets_every_score(tmp_path):
    test = _test_images(40, 30)
    _, page, _ = _write(tmp_path, test, max_images=4)
    data = json.loads(page.text["data"])
    assert data["good"] == sorted(test.scores[test.labels == 0].tolist())
    assert data["anomalous"] == sorted(test.scores[test.labels == 1].tolist())
    assert data["low"] <= min(test.scores) < data["high"]


@pytest.mark.parametrize("seed", range(4))
def test_the_histogram_counts_every_image_despite_one_extreme_score(tmp_path, seed):
    test = _test_images(40, 30, seed=seed)
    test.scores[-1] = 1e6
    html, page, _ = _write(tmp_path, test)
    for kind, count in (("good", 40), ("anomalous", 30)):
        counts = re.findall(rf"<title>[^<]*: (\d+) {kind}</title>", html)
        assert sum(map(int, counts)) == count
        assert len(counts) > 5
    for bar in page.all("rect"):
        assert float(bar["y"]) >= 0
        assert float(bar["y"]) + float(bar["height"]) <= 100


def test_the_gallery_shows_the_worst_misses_first_and_keeps_to_its_limit(tmp_path):
    test = _test_images(40, 30)
    html, page, _ = _write(tmp_path, test, max_images=12)
    assert "The file holds 12" in html
    cards = page.all("figure", "card")
    assert [card["data-label"] for card in cards] == ["1"] * 6 + ["0"] * 6
    shown = [float(card["data-score"]) for card in cards]
    assert shown[:6] == sorted(shown[:6])
    assert shown[6:] == sorted(shown[6:], reverse=True)
    anomalous = np.sort(test.scores[test.labels == 1])
    assert shown[:4] == anomalous[:4].tolist()
    assert shown[5] == anomalous[-1]
    _, page, _ = _write(tmp_path, test)
    assert len(page.all("figure", "card")) == 70


@pytest.mark.parametrize(
    ("good", "anomalous", "limit", "expected"),
    [(3, 30, 12, (3, 9)), (30, 3, 12, (9, 3)), (5, 4, 60, (5, 4)), (9, 9, 0, (0, 0))],
)
def test_a_small_class_leaves_its_places_to_the_other(tmp_path, good, anomalous, limit, expected):
    _, page, _ = _write(tmp_path, _test_images(good, anomalous), max_images=limit)
    labels = [card["data-label"] for card in page.all("figure", "card")]
    assert (labels.count("0"), labels.count("1")) == expected


def test_each_picture_has_its_layers_and_alt_texts(tmp_path):
    test = _test_images(side=400)
    _, page, _ = _write(tmp_path, test)
    pictures = page.all("img")
    assert all(picture["alt"] for picture in pictures)
    assert len(page.all("img", "heat")) == len(page.all("img", "combined")) == 11
    assert len(page.all("img", "outline")) == 5
    photograph = _picture(pictures[0]["src"])
    assert (photograph.format, photograph.size) == ("JPEG", (320, 320))
    heat = _picture(page.all("img", "heat")[0]["src"])
    assert (heat.format, heat.size) == ("PNG", (64, 64))


def test_local_and_global_maps_are_there_to_choose(tmp_path):
    test = _test_images()
    _, page, _ = _write(tmp_path, test)
    assert not [i for i in page.all("input") if i["type"] == "radio"]
    test = test._replace(local_maps=test.maps, global_maps=test.maps)
    _, page, _ = _write(tmp_path, test)
    radios = [i["value"] for i in page.all("input") if i["type"] == "radio"]
    assert radios == ["combined", "local", "global"]
    assert [len(page.all("img", name)) for name in radios] == [11] * 3


def test_the_heat_map_is_strongest_where_the_anomaly_map_is(tmp_path):
    test = _test_images(side=64)
    for anomaly_map in test.maps:
        anomaly_map[:] = 0
    test.maps[-1][10:30, 40:60] = 5
    assert len(test.maps[-1]) == 64
    _, page, _ = _write(tmp_path, test)
    alphas = [
        np.asarray(_picture(a["src"]).convert("RGBA"))[..., 3] for a in page.all("img", "heat")
    ]
    marked = [alpha for alpha in alphas if alpha.any()]
    assert len(marked) == 1
    np.testing.assert_array_equal(marked[0] > 0, test.maps[-1] > 0)


def test_the_outline_surrounds_the_defect_even_a_single_pixel(tmp_path):
    mask = np.zeros((512, 512), bool)
    mask[100, 200] = True
    test = _test_images(1, 1, side=512)._replace(masks=[None, mask])
    _, page, _ = _write(tmp_path, test)
    outline = np.asarray(_picture(page.all("img", "outline")[0]["src"]).convert("RGBA"))[..., 3]
    rows, columns = np.nonzero(outline)
    assert outline.shape == (320, 320)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (60, 64, 123, 127)
    assert outline[62, 125] == 0


def test_boxes_of_regions_are_drawn_over_their_images_and_counted(tmp_path):
    boxes = [[]] * 9 + [[(0.25, 0.5, 0.125, 0.2)], [(0.0, 0.0, 1.0, 1.0)] * 2]
    counts = RegionCounts(8, 6, 6, 2, 3)
    test = _test_images()._replace(boxes=boxes)
    html, page, _ = _write(tmp_path, test, regions=counts)
    assert "6 of 8 defects in masks" in html
    assert "3 in 2 of 6 good images" in html
    assert ">0.750<" in html
    assert ">0.500<" in html
    assert len(page.all("svg", "boxes")) == 2
    paths = [a["d"] for a in page.all("path")]
    assert paths.count("M25.00 50.00h12.50v20.00h-12.50z") == 2  # a line and its dark edge
    assert "boxes" in [i.get("id") for i in page.all("input")]
    html, page, _ = _write(tmp_path, _test_images())
    assert not page.all("svg", "boxes")
    assert "defects in masks" not in html
    assert "boxes" not in [i.get("id") for i in page.all("input")]


@pytest.mark.parametrize(("good", "anomalous"), [(4, 0), (0, 4), (1, 0)])
def test_one_class_still_gives_a_report(tmp_path, good, anomalous):
    html, page, metrics = _write(tmp_path, _test_images(good, anomalous))
    assert metrics.image_reason in html
    assert not [line for line in page.all("polyline") if line["id"] == "roc"]
    assert len(page.all("figure", "card")) == good + anomalous


def test_equal_scores_and_flat_maps_still_give_a_report(tmp_path):
    test = _test_images()
    test.scores[:] = 0.5
    for anomaly_map in test.maps:
        anomaly_map[:] = 0.25
    html, _, _ = _write(tmp_path, test)
    assert "nan" not in html.partition("data:image")[0].lower()


def test_the_report_is_deterministic(tmp_path):
    assert _write(tmp_path, _test_images())[0] == _write(tmp_path, _test_images())[0]


@pytest.mark.slow
def test_the_file_of_500_images_stays_small(tmp_path):
    # Noise is the worst case for JPEG and PNG.
    test = _test_images(250, 250, side=64)
    test = test._replace(images=test.images.repeat(4, axis=1).repeat(4, axis=2))
    test = test._replace(local_maps=test.maps, global_maps=test.maps)
    html, page, _ = _write(tmp_path, test)
    assert len(page.all("figure", "card")) == 500
    assert len(html) < 15_000_000


def test_inputs_are_native_and_labeled(tmp_path):
    html, page, _ = _write(tmp_path, _test_images())
    inputs = page.all("input")
    assert {i["type"] for i in inputs} == {"range", "number", "checkbox"}
    inputs += page.all("select")
    labeled = {label["for"] for label in page.all("label") if "for" in label}
    for one in inputs:
        wrapped = re.search(rf'<label[^>]*>[^<]*<[^>]*id="{one["id"]}"', html)
        assert "aria-label" in one or one["id"] in labeled or wrapped


def test_unusable_input_is_named(tmp_path):
    test = _test_images()
    metrics = evaluate(test.scores, test.labels)
    short = test._replace(maps=test.maps[:-1])
    with pytest.raises(InputError, match="found 10 maps for 11 names"):
        write_report(tmp_path / "r.html", short, metrics, title="t", baselines={}, facts={})
    empty = _test_images(0, 0)
    with pytest.raises(InputError, match="no test image"):
        write_report(tmp_path / "r.html", empty, metrics, title="t", baselines={}, facts={})
    assert not list(tmp_path.iterdir())
