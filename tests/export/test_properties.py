"""Exported files hold what is needed to use them, and it is read back."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from efficientad_jax import InputError, __version__, commands
from efficientad_jax.data.decoding import resize_map
from efficientad_jax.detection.regions.components import find_regions
from efficientad_jax.detection.threshold import RegionRule, Threshold, choose_threshold
from efficientad_jax.export import int8 as int8_export
from efficientad_jax.export.int8 import int8_model
from efficientad_jax.export.onnx_model import onnx_model
from efficientad_jax.export.programs import onnx_program, open_program, run_in_batches
from efficientad_jax.export.properties import export_properties, write_properties
from efficientad_jax.export.stablehlo import stablehlo_bytes
from tests.helpers.detectors import random_detector
from tests.helpers.images import uint8_images
from tests.helpers.openvino import import_openvino

pytestmark = pytest.mark.slow

THRESHOLD = Threshold(0.1416491568088531, 0.05, 0.001, 0.25, 30, margin=1e-4)
RULE = RegionRule(THRESHOLD._replace(false_alarm_rate=0.4), 30, ())
# Original heights and widths of the five images of the 8-bit file.
SIZES = [(150, 130), (100, 90), (150, 130), (100, 90), (128, 128)]


@pytest.fixture(scope="module")
def detector():
    return replace(random_detector(), threshold=THRESHOLD)


@pytest.fixture(scope="module")
def images(detector):
    return uint8_images(5, detector.spec.input_size, block=8)


@pytest.fixture(scope="module")
def int8(detector, images):
    return int8_model(replace(detector, region_rule=RULE), images, SIZES)


def texts(model):
    return {entry.key: entry.value for entry in model.metadata_props}


def test_uint8_images_go_into_a_cast_first(detector, int8):
    # TensorRT accepts uint8 inputs only there.
    for model in (onnx_model(detector), int8):
        readers = [node.op_type for node in model.graph.node if "images" in node.input]
        assert readers == ["Cast"]


def test_an_onnx_file_says_what_it_needs(detector, tmp_path):
    folder, file = tmp_path / "detector", tmp_path / "a.onnx"
    detector.save(folder)
    assert commands.main(["export", str(folder), "--format=onnx", f"--output={file}"]) == 0
    stored = texts(onnx.load(file))
    record = json.loads((folder / "detector.json").read_text())
    assert float(stored["threshold"]) == THRESHOLD.limit
    assert float(stored["false_alarm_rate"]) == 0.05
    assert float(stored["false_alarm_rate_high"]) == 0.25
    assert stored["threshold_images"] == "30"
    assert (stored["input_height"], stored["input_width"]) == ("128", "128")
    assert (stored["color_order"], stored["input_layout"]) == ("RGB", "NHWC")
    assert json.loads(stored["normalization_mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(stored["normalization_std"]) == [0.229, 0.224, 0.225]
    assert stored["white_level"] == "65535"
    assert stored["precision"] == "float32"
    assert stored["efficientad_jax_version"] == __version__
    assert stored["arrays_sha256"] == record["arrays_sha256"]
    program = open_program(file)
    assert program.threshold == THRESHOLD.limit
    assert program.arrays_sha256 == record["arrays_sha256"]


def test_an_int8_file_has_a_threshold_of_its_own(detector, int8, images):
    scores = run_in_batches(onnx_program(int8.SerializeToString()), images)["scores"]
    expected = choose_threshold(scores, THRESHOLD.false_alarm_rate)
    stored = texts(int8)
    assert float(stored["threshold"]) == expected.limit > expected.value
    assert expected.value != THRESHOLD.value
    assert stored["threshold_images"] == "5"
    assert stored["precision"] == "int8"


def test_the_threshold_of_int8_is_chosen_from_all_images(detector, images, monkeypatch):
    monkeypatch.setattr("efficientad_jax.export.int8._MOST_MEASURED", 2)
    assert texts(int8_model(detector, images))["threshold_images"] == "5"


def test_without_a_threshold_none_is_stored(images):
    detector = random_detector()
    for model in (onnx_model(detector), int8_model(detector, images)):
        assert not {"threshold", "pixel_threshold"} & texts(model).keys()
        assert onnx_program(model.SerializeToString()).threshold is None


def test_files_say_how_to_find_regions(detector):
    rule = RegionRule(THRESHOLD, 12, ())
    with_rule = replace(detector, region_rule=rule)
    stored = texts(onnx_model(with_rule))
    assert float(stored["pixel_threshold"]) == THRESHOLD.limit
    assert stored["smallest_region"] == "12"
    assert float(stored["region_false_positive_rate"]) == 0.05
    assert float(stored["region_false_positive_rate_high"]) == 0.25
    assert export_properties(with_rule, "bfloat16", None)["pixel_threshold"] == THRESHOLD.limit
    properties = export_properties(detector, "float32", THRESHOLD)
    assert "pixel_threshold" not in properties
    assert "smallest_region" not in properties


def test_an_int8_file_has_a_pixel_threshold_of_its_own(int8, images):
    stored = texts(int8)
    limit = float(stored["pixel_threshold"])
    assert limit != RULE.threshold.limit
    assert stored["smallest_region"] == "30"
    assert float(stored["region_false_positive_rate"]) == 0.4
    maps = run_in_batches(onnx_program(int8.SerializeToString()), images)["combined"]
    enlarged = [resize_map(cells, size) for cells, size in zip(maps, SIZES, strict=True)]
    # It lies just above the second highest of the five scores, as 0.4 * (5 + 1) is 2.4.
    for level, count in ((limit, 1), (limit - 1e-3, 2)):
        assert sum(bool(find_regions(each, level, 30)) for each in enlarged) == count


def test_a_stablehlo_file_has_its_properties_next_to_it(detector, tmp_path, capsys):
    folder, file = tmp_path / "detector", tmp_path / "new/a.stablehlo"
    detector.save(folder)
    commands.main(["export", str(folder), "--format=stablehlo", f"--output={file}"])
    assert "a.stablehlo.json" in capsys.readouterr().out
    assert {path.name for path in file.parent.iterdir()} == {"a.stablehlo", "a.stablehlo.json"}
    path = file.with_name("a.stablehlo.json")
    stored = json.loads(path.read_text())
    assert stored == export_properties(detector, "float32", THRESHOLD) | {
        "file_sha256": hashlib.sha256(file.read_bytes()).hexdigest()
    }
    assert open_program(file).threshold == THRESHOLD.limit

    def refused(content, match):
        path.write_text(content)
        with pytest.raises(InputError, match=match) as error:
            open_program(file)
        assert "\n" not in str(error.value)

    refused("{", "cannot be read as JSON")
    refused("[]", "describes another file than a.stablehlo")
    refused(json.dumps(stored | {"file_sha256": "0"}), "describes another file than a.stablehlo")
    for threshold in ("high", [1], "nan"):
        refused(json.dumps(stored | {"threshold": threshold}), "its threshold is")
    path.unlink()
    assert open_program(file).threshold is None


def test_properties_of_an_older_file_are_refused(detector, tmp_path):
    content = stablehlo_bytes(detector)
    (tmp_path / "a.stablehlo").write_bytes(content)
    properties = export_properties(detector, "float32", THRESHOLD)
    write_properties(tmp_path / "a.stablehlo", content + b"older", properties)
    with pytest.raises(InputError, match="describes another file"):
        open_program(tmp_path / "a.stablehlo")


def test_int8_does_not_clip_what_good_images_never_show(detector):
    # Good images have some contrast; the defects are black and white.
    rng = np.random.default_rng(0)
    cells = rng.integers(90, 166, (4, 32, 32, 3)).astype(np.uint8)
    good = cells.repeat(4, axis=1).repeat(4, axis=2)
    checks, blot = good.copy(), good.copy()
    checks[:, 40:80, 40:80] = np.kron(np.indices((10, 10)).sum(0) % 2 * 255, np.ones((4, 4)))[
        ..., None
    ]
    blot[:, 40:60, 40:90] = 0
    exact = onnx_program(onnx_model(detector).SerializeToString())
    rounded = onnx_program(int8_model(detector, good).SerializeToString())
    for images in (checks, blot, good):
        expected = exact.run(images)["scores"]
        np.testing.assert_allclose(rounded.run(images)["scores"], expected, rtol=0.15)


def test_int8_has_narrow_ranges_where_wide_ones_would_drown_the_scores(detector, monkeypatch):
    shown = []

    def recorded(model, images, quantized=int8_export._quantized):
        shown.append(len(images))
        return quantized(model, images)

    monkeypatch.setattr(int8_export, "_quantized", recorded)
    images = uint8_images(4, detector.spec.input_size, block=8)
    int8_model(detector, images)
    assert shown == [8]  # the images and their disturbed copies
    # The scores of images that are nearly the same differ by less than rounding changes them.
    noise = np.random.default_rng(0).integers(0, 2, images.shape, np.uint8)
    int8_model(detector, images[:1] // 2 + noise)
    assert shown[1:] == [8, 4]


def test_openvino_runs_an_int8_file(int8, images):
    openvino = import_openvino()
    core = openvino.Core()
    model = core.read_model(int8.SerializeToString())
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = onnx_program(int8.SerializeToString()).run(images)
    found = compiled(images)
    # The two round at other places.
    for name in ("scores", "combined"):
        error = np.abs(found[name] - expected[name]).max() / np.ptp(expected["combined"])
        assert error < 0.05, name


def test_an_int8_file_has_zero_points_that_tensorrt_refuses(int8):
    # docs/examples.md says so.
    constants = {each.name: each for each in int8.graph.initializer}
    points = [n.input[2] for n in int8.graph.node if n.op_type == "QuantizeLinear"]
    assert any(onnx.numpy_helper.to_array(constants[name]).any() for name in points)
