"""The files of `efficientad predict --regions`, read back."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from efficientad_jax import detect_tiled
from efficientad_jax.commands import predict
from efficientad_jax.commands.command_line import Parser
from efficientad_jax.detection import predict_files as module
from efficientad_jax.detection.heatmap import LINE_COLOR
from efficientad_jax.detection.regions.components import region_mask
from efficientad_jax.detection.regions.files import RegionFiles
from efficientad_jax.errors import InputError
from tests.helpers.detectors import random_detector, with_regions
from tests.helpers.images import encoded, picture

AREA = 20
PICTURES = {"a.png": picture(70, 90, 1), "part/b.bmp": picture(64, 50, 2)}


@pytest.fixture(scope="module")
def detector():
    """About a tenth of the pixels of the pictures are above its pixel threshold."""
    plain = random_detector()
    values = np.concatenate([plain(pixels).anomaly_map.ravel() for pixels in PICTURES.values()])
    return with_regions(plain, float(np.quantile(values, 0.9)), AREA)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for name, pixels in PICTURES.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(encoded(pixels, name[-3:].upper()))
    return folder


@pytest.fixture
def predicted(detector, tmp_path, capsys):
    """Runs the subcommand in this process; its status and what it printed."""
    detector.save(tmp_path / "detector")

    def predicted(*arguments):
        parser = Parser()
        predict.add_arguments(parser)
        words = [str(argument) for argument in (tmp_path / "detector", *arguments)]
        return predict.run(parser.parse_intermixed_args(words)), capsys.readouterr().out

    return predicted


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--no-pictures",), ("--tile",)])
def test_every_file_has_the_regions_of_the_detector(predicted, detector, images, tmp_path, more):
    output = tmp_path / "out"
    formats = "--regions=csv,json,coco,masks"
    status, printed = predicted(images, f"--output={output}", formats, *more)
    assert status == 0
    assert "pixel threshold" in printed
    maps = {name: _map(detector, name, bool(more and more[0] == "--tile")) for name in PICTURES}
    rule = detector.region_rule
    expected = {name: rule.find(anomaly_map, polygons=True) for name, anomaly_map in maps.items()}
    assert min(len(regions) for regions in expected.values()) > 1

    rows = list(csv.DictReader((output / "regions.csv").read_text().splitlines()))
    for name, regions in expected.items():
        lines = [row for row in rows if row["image"] == str(images / name)]
        assert [line["region"] for line in lines] == [str(i + 1) for i in range(len(regions))]
        for line, region in zip(lines, regions, strict=True):
            assert tuple(int(line[k]) for k in ("x", "y", "width", "height")) == region.box
            assert int(line["area"]) == region.area
            centroid = float(line["centroid_x"]), float(line["centroid_y"])
            assert centroid == pytest.approx(region.centroid, rel=1e-5)
            assert float(line["peak_score"]) == pytest.approx(region.peak_score, rel=1e-5)
            assert float(line["mean_score"]) == pytest.approx(region.mean_score, rel=1e-5)

    stored = json.loads((output / "regions.json").read_text())
    assert (stored["pixel_threshold"], stored["smallest_area"]) == (rule.threshold.limit, AREA)
    coco = json.loads((output / "regions_coco.json").read_text())
    assert [c["name"] for c in coco["categories"]] == ["anomaly"]
    assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"]) == len(rows)
    for entry, image, name in zip(stored["images"], coco["images"], PICTURES, strict=True):
        assert entry["image"] == str(images / name)
        assert image["file_name"] == name
        height, width = PICTURES[name].shape[:2]
        assert [(e["height"], e["width"]) for e in (entry, image)] == [(height, width)] * 2
        assert entry["anomalous"] is None
        as_json = json.loads(json.dumps([region.as_dict() for region in expected[name]]))
        assert entry["regions"] == as_json
        annotations = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        assert [a["bbox"] for a in annotations] == [r["box"] for r in as_json]
        assert [a["area"] for a in annotations] == [r["area"] for r in as_json]
        flat = [np.ravel(r["polygon"]).tolist() for r in as_json]
        assert [a["segmentation"] for a in annotations] == [[polygon] for polygon in flat]
        mask = np.asarray(Image.open((output / "masks" / name).with_suffix(".png")))
        marked = region_mask(maps[name], rule.threshold.limit, AREA)
        np.testing.assert_array_equal(mask, np.where(marked, 255, 0))
    if "--no-pictures" not in more:
        drawn = np.asarray(Image.open(output / "a_heatmap.png"))[:, 90:]
        x, y, width, height = expected["a.png"][0].box
        outside = drawn[max(y - 1, 0), x : x + width]
        assert (outside == LINE_COLOR).all()


def _map(detector, name, tiled):
    return (
        detect_tiled(detector, PICTURES[name]) if tiled else detector(PICTURES[name])
    ).anomaly_map


def test_other_rates_choose_another_pixel_threshold(predicted, detector, images, tmp_path):
    output = f"--output={tmp_path / 'out'}"
    scores = tuple(np.linspace(1.0, 2.0, 50).tolist())
    rule = detector.region_rule._replace(validation_scores=scores)
    replace(detector, region_rule=rule).save(tmp_path / "detector")
    arguments = (images, output, "--no-pictures", "--regions=json")
    assert (
        "in 10 % of the good images" in predicted(*arguments, "--region-false-positive-rate=0.1")[1]
    )
    stored = json.loads((tmp_path / "out/regions.json").read_text())
    assert stored["pixel_threshold"] == rule.with_rate(0.1).threshold.limit
    assert stored["pixel_threshold"] != rule.threshold.limit
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"scores.csv", "regions.json"}


@pytest.mark.slow
def test_what_regions_need_is_said_in_one_line(predicted, images, tmp_path):
    for arguments, named in (
        (("--regions=masks",), "expected --output with it"),
        (("--regions=xml",), "'xml': expected some of csv, json, coco, masks"),
        (("--regions=",), "'': expected some of csv"),
        (("--region-false-positive-rate=0.1",), "expected --regions with it"),
        (("--regions=csv", "--region-false-positive-rate=2"), "false-alarm rate 2.0"),
    ):
        with pytest.raises(InputError, match=named) as error:
            predicted(images, *arguments)
        assert str(error.value).isprintable()
    random_detector().save(tmp_path / "detector")
    with pytest.raises(InputError, match=r"has no pixel threshold .*--region-false-positive-rate"):
        predicted(images, "--regions=csv")


def test_an_interruption_keeps_the_regions_of_the_images_before_it(
    predicted, images, tmp_path, monkeypatch
):
    save = module.save_picture

    def interrupt(path, *rest, **options):
        if path.name.startswith("b"):
            raise KeyboardInterrupt
        save(path, *rest, **options)

    monkeypatch.setattr(module, "save_picture", interrupt)
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predicted(images, f"--output={output}", "--regions=csv,json,coco")
    stored = json.loads((output / "regions.json").read_text())["images"]
    assert [entry["image"] for entry in stored] == [str(images / name) for name in PICTURES]
    assert len(json.loads((output / "regions_coco.json").read_text())["images"]) == 2
    assert len((output / "regions.csv").read_text().splitlines()) > 3


def test_masks_of_the_same_name_do_not_replace_each_other(tmp_path):
    mask = np.ones((2, 3), bool)
    images = [tmp_path / "a.png", tmp_path / "a.jpg", tmp_path / "other/a.jpg"]
    with RegionFiles(tmp_path, ["masks"], 0.5, smallest_area=1) as files:
        for image in images[:2]:
            files.write_mask(image, image.relative_to(tmp_path), mask)
        with pytest.raises(InputError, match=r"would replace .*a\.jpg\.png, that of .*a\.jpg"):
            files.write_mask(images[2], images[1].relative_to(tmp_path), mask)
    written = {path.name for path in (tmp_path / "masks").iterdir()}
    assert written == {"a.png", "a.jpg.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"masks"}


def test_without_an_image_the_files_are_empty(tmp_path):
    with RegionFiles(tmp_path, ["csv", "json", "coco"], 0.5, smallest_area=3):
        pass
    assert (tmp_path / "regions.csv").read_text().count("\n") == 1
    assert json.loads((tmp_path / "regions.json").read_text())["images"] == []
    assert json.loads((tmp_path / "regions_coco.json").read_text())["annotations"] == []
