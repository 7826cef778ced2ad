"""Every way to use a detector finds the same regions in the same image."""

import json
import re
import threading

import httpx2
import numpy as np
import pytest
from PIL import Image

from efficientad_jax.commands import predict
from efficientad_jax.commands.command_line import Parser
from efficientad_jax.detection.heatmap import LINE_COLOR
from efficientad_jax.serving.application import create_application
from efficientad_jax.watching.watch import Options, watch
from tests.helpers.command import REPOSITORY
from tests.helpers.detectors import SPEC, random_detector, with_regions
from tests.helpers.images import encoded, picture
from tests.helpers.live_server import running

AREA = 40
# Larger and smaller than the input, and than the map.
SIZES = [(300, 220), (128, 128), (25, 30)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i, (height, width) in enumerate(SIZES):
        blocks = picture(-(-height // 8), -(-width // 8), seed=i + 1)
        pixels = blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
        (folder / f"{i}.png").write_bytes(encoded(pixels))
    return folder


@pytest.fixture(scope="module")
def detector(images):
    """Its pixel threshold lies between two values of a map, far from both."""
    plain = random_detector(SPEC._replace(out_channels=4, autoencoder=True))
    values = np.concatenate([plain(f).anomaly_map.ravel() for f in sorted(images.glob("*.png"))])
    highest = np.sort(values)[int(0.8 * values.size) :][: values.size // 10]
    gap = int(np.argmax(np.diff(highest)))
    return with_regions(plain, float(highest[gap : gap + 2].mean()), AREA)


@pytest.fixture(scope="module")
def expected(detector, images):
    """The regions of each image as the detector itself finds them."""
    regions = [
        [region.as_dict() for region in detector(file).regions]
        for file in sorted(images.glob("*.png"))
    ]
    assert sum(map(len, regions)) > 3
    return json.loads(json.dumps(regions))


def assert_same(found, expected):
    assert [len(each) for each in found] == [len(each) for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for region, other in zip(ours, theirs, strict=True):
            assert region["box"] == other["box"]
            assert region["area"] == other["area"]
            assert region["centroid"] == pytest.approx(other["centroid"], rel=1e-6)
            for name in ("peak_score", "mean_score"):
                assert region[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--no-pictures",)])
def test_predict(detector, images, expected, tmp_path, more):
    detector.save(tmp_path / "detector")
    parser = Parser()
    predict.add_arguments(parser)
    output = f"--output={tmp_path / 'out'}"
    words = [str(tmp_path / "detector"), str(images), output, "--regions=json", *more]
    assert predict.run(parser.parse_intermixed_args(words)) == 0
    stored = json.loads((tmp_path / "out" / "regions.json").read_text())
    assert_same([entry["regions"] for entry in stored["images"]], expected)


def test_serve(detector, images, expected):
    with running(create_application(detector)) as address:
        answers = [
            httpx2.post(f"{address}/predict", content=file.read_bytes(), timeout=60).json()
            for file in sorted(images.glob("*.png"))
        ]
    assert_same([answer["regions"] for answer in answers], expected)


def test_watch(detector, images, expected, tmp_path):
    done = threading.Event()
    lines = []

    def report(line):
        lines.append(line)
        if len(lines) == len(SIZES):
            done.set()

    options = Options(settle=0.0, pictures="all")
    watch(
        detector,
        str(images),
        tmp_path,
        options=options,
        stopped=done.is_set,
        report=report,
        report_error=lines.append,
    )
    entries = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    entries.sort(key=lambda entry: entry["image"])
    assert_same([entry["regions"] for entry in entries], expected)
    for entry in entries:
        with Image.open(entry["picture"]) as drawn:
            has_boxes = (np.asarray(drawn) == LINE_COLOR).all(-1).any()
        assert has_boxes == bool(entry["regions"])


def test_an_onnx_file_and_the_lines_of_the_documentation(
    detector, images, expected, tmp_path, monkeypatch
):
    onnx_model = pytest.importorskip("efficientad_jax.export.onnx_model").onnx_model
    page = (REPOSITORY / "docs" / "regions.md").read_text()
    (code,) = re.findall(r"<!-- regions-of-onnx -->\n```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.onnx").write_bytes(onnx_model(detector).SerializeToString())
    monkeypatch.chdir(tmp_path)
    found = []
    for file in sorted(images.glob("*.png")):
        (tmp_path / "photo.png").write_bytes(file.read_bytes())
        names = {}
        exec(compile(code, "docs/regions.md", "exec"), names)
        found.append(names["regions"])
    assert_same(found, expected)
