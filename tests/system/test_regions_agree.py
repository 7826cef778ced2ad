"""Every way to use a detector finds the same regions in the same image."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import httpx2
import numpy as np
import pytest
from PIL import Image

from efficientad_jax.commands import predict
from efficientad_jax.commands.command_line import Parser
from efficientad_jax.data.decoding import resize_map
from efficientad_jax.detection.heatmap import LINE_COLOR
from efficientad_jax.detection.threshold import Threshold, choose_region_rule, choose_threshold
from efficientad_jax.serving.application import create_application
from efficientad_jax.watching.watch import Options, watch
from tests.helpers.command import REPOSITORY
from tests.helpers.detectors import SPEC, random_detector, with_regions
from tests.helpers.images import encoded, picture
from tests.helpers.live_server import running

EXAMPLES = REPOSITORY / "docs" / "examples"
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
    plain = random_detector(SPEC._replace(out_channels=4, autoencoder=True), score_values=5)
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


# The programs of docs/examples/python, and of docs/examples/cpp where ONNX Runtime's headers are.

# Runs several of them in one process, which imports their libraries once. Adds the map, at the
# networks' size, to what they print for an image. Telemetry of OpenVINO and NNCF stays out.
RUN = """
import contextlib, io, json, runpy, sys
sys.modules["openvino_telemetry"] = None
folder, lines = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, folder)
import processing
result = processing.result
def with_map(score, cells, *others):
    return result(score, cells, *others) | {"cells": cells.tolist()}
processing.result = with_map
printed = []
for line in lines:
    sys.argv = line
    with contextlib.redirect_stdout(io.StringIO()) as output:
        runpy.run_path(f"{folder}/{line[0]}", run_name="__main__")
    printed.append(output.getvalue())
print(json.dumps(printed))
"""
RATE = 0.4  # of both thresholds: 0.4 * (3 + 1) is 1.6, so that the highest of 3 scores decides


@pytest.fixture(scope="module")
def exported(detector, tmp_path_factory):
    """The detector as an ONNX file, with a threshold in the middle of the scores."""
    onnx_model = pytest.importorskip(
        "efficientad_jax.export.onnx_model", reason="pip install -e '.[export]'"
    ).onnx_model
    rates = {"false_alarm_rate": RATE}
    rule = detector.region_rule
    complete = replace(
        detector,
        threshold=Threshold(3.5, 0.01, 0.001, 0.05, 100)._replace(**rates),
        region_rule=rule._replace(threshold=rule.threshold._replace(**rates)),
    )
    file = tmp_path_factory.mktemp("exported") / "mine.onnx"
    file.write_bytes(onnx_model(complete).SerializeToString())
    return file


@pytest.fixture(scope="module")
def scores_and_maps(detector, images):
    files = sorted(images.glob("*.png"))
    inputs = np.stack([detector.network_input(detector.decode(file)) for file in files])
    anomalies = detector.detect(inputs)
    return np.asarray(anomalies.scores), np.asarray(anomalies.combined)


@pytest.fixture(scope="module")
def programs(exported, images):
    """The lines that the programs in Python print for the images, by name, sorted by image."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed: pip install -e '.[openvino]'")
    photos = [str(file) for file in sorted(images.glob("*.png"))]
    quantized = str(exported.with_name("mine_int8.xml"))
    lines = {
        "onnxruntime": ["detect_onnxruntime.py", str(exported), *photos * 3],
        "openvino": ["detect_openvino.py", str(exported), *photos],
        "bf16": ["detect_openvino.py", "--precision=bf16", str(exported), *photos],
    }
    if importlib.util.find_spec("nncf") is not None:
        lines["quantization"] = [
            *("quantize_nncf.py", str(exported), *photos),
            f"--output={quantized}",
        ]
        lines["int8"] = ["detect_openvino.py", quantized, *photos]
    words = [sys.executable, "-c", RUN, str(EXAMPLES / "python"), json.dumps([*lines.values()])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    by_name = dict(zip(lines, printed, strict=True))
    by_name.pop("quantization", None)
    return {
        name: sorted(map(json.loads, text.splitlines()), key=lambda entry: entry["image"])
        for name, text in by_name.items()
    }


def largest_differences(entries, scores_and_maps):
    """Of the scores and of the maps, as parts of the range of the maps."""
    scores, maps = scores_and_maps
    span = np.ptp(maps)
    found = [np.array([entry[name] for entry in entries]) for name in ("score", "cells")]
    differences = [
        np.abs(ours - theirs).max() / span
        for ours, theirs in zip(found, (scores, maps), strict=True)
    ]
    print("largest differences of scores and maps:", *differences)
    return differences


@pytest.mark.slow
def test_onnx_runtime_in_python(programs, expected, scores_and_maps):
    entries = programs["onnxruntime"]
    assert len(entries) == 9  # in two batches
    assert_same([entry["regions"] for entry in entries[::3]], expected)
    assert max(largest_differences(entries[::3], scores_and_maps)) < 1e-5
    assert [entry["verdict"] for entry in entries[::3]] == [False, True, True]


@pytest.mark.slow
def test_openvino_in_python(programs, expected, scores_and_maps):
    entries = programs["openvino"]
    assert_same([entry["regions"] for entry in entries], expected)
    assert max(largest_differences(entries, scores_and_maps)) < 1e-5
    assert [entry["verdict"] for entry in entries] == [False, True, True]


@pytest.mark.slow
def test_openvino_in_bfloat16(programs, scores_and_maps):
    # Processors without bfloat16 compute in float32.
    assert max(largest_differences(programs["bf16"], scores_and_maps)) < 0.02


@pytest.mark.slow
def test_openvino_in_8_bits_by_nncf(programs, exported, scores_and_maps):
    if "int8" not in programs:
        pytest.skip("NNCF is not installed: pip install -e '.[openvino]'")
    entries = programs["int8"]
    assert min(largest_differences(entries, scores_and_maps)) > 1e-4
    assert max(largest_differences(entries, scores_and_maps)) < 0.1
    # Its thresholds are those that the package would choose from these scores and maps.
    stored = ElementTree.parse(exported.with_name("mine_int8.xml")).find("rt_info/framework")
    properties = {entry.tag: entry.get("value") for entry in stored}
    limit = choose_threshold([entry["score"] for entry in entries], RATE).limit
    maps = [
        resize_map(np.array(entry["cells"], np.float32), size)
        for entry, size in zip(entries, SIZES, strict=True)
    ]
    rule = choose_region_rule(maps, RATE, AREA)
    assert float(properties["threshold"]) == pytest.approx(limit, rel=1e-5)
    assert float(properties["pixel_threshold"]) == pytest.approx(rule.threshold.limit, rel=1e-5)
    assert properties["precision"] == "int8"


@pytest.mark.slow
def test_nncf_rounds_nothing_that_follows_the_features(programs, exported):
    """Whatever it rounds is cut off at the range of the good images, which defects exceed."""
    if "int8" not in programs:
        pytest.skip("NNCF is not installed: pip install -e '.[openvino]'")
    layers = ElementTree.parse(exported.with_name("mine_int8.xml")).iter("layer")
    rounded = [each.get("name") for each in layers if each.get("type") == "FakeQuantize"]
    activations = {name.split("/fq_")[0] for name in rounded if "/fq_weights" not in name}
    assert "student/conv3/relu" in activations
    assert {name.split("/")[0] for name in activations} == {"student", "teacher"}


@pytest.fixture(scope="module")
def cpp_program(tmp_path_factory):
    """The program in C++, built with the library that the wheel of ONNX Runtime brings."""
    folder = tmp_path_factory.mktemp("cpp")
    headers = os.environ.get("ONNXRUNTIME_HEADERS", "/usr/include/onnxruntime")
    if not Path(headers, "onnxruntime_cxx_api.h").is_file():
        pytest.skip(
            f"no headers of ONNX Runtime in {headers}: apt-get install libonnxruntime-dev, or set "
            "ONNXRUNTIME_HEADERS to the include folder of a release"
        )
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} to build the program with")
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    linked = folder / "libonnxruntime.so.1"
    linked.symlink_to(library)
    configure = [
        *("cmake", "-S", EXAMPLES / "cpp", "-B", folder / "build"),
        f"-DONNXRUNTIME_INCLUDE={headers}",
        f"-DONNXRUNTIME_LIBRARY={linked}",
        "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror",
    ]
    for words in (configure, ["cmake", "--build", folder / "build"]):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "detect"


@pytest.mark.slow
def test_onnx_runtime_in_cpp(cpp_program, exported, images, expected, scores_and_maps, tmp_path):
    found = []
    for file in sorted(images.glob("*.png")):
        photo = tmp_path / f"{file.stem}.ppm"
        with Image.open(file) as image:
            image.save(photo)
        words = [cpp_program, exported, photo]
        printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        found.append(json.loads(printed))
    assert_same([entry["regions"] for entry in found], expected)
    scores = [entry["score"] for entry in found]
    np.testing.assert_allclose(scores, scores_and_maps[0], rtol=1e-5)
    assert [entry["verdict"] for entry in found] == [False, True, True]
    done = subprocess.run([cpp_program, exported, exported], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no 8-bit PPM" in done.stderr


def test_the_program_in_cpp_is_short():
    assert len((EXAMPLES / "cpp/main.cpp").read_text().splitlines()) < 150


def test_the_documentation_has_the_function_of_the_example():
    code = (EXAMPLES / "python/processing.py").read_text()
    start = code.index("def find_regions")
    function = code[start : code.index("\n\n\n", start)]
    assert function in (REPOSITORY / "docs/regions.md").read_text()
