"""Compares exported detectors, in the runtimes of their formats, with the detector itself."""

import re
import subprocess
import sys

import jax.export
import numpy as np
import onnx
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from efficientad_jax import InputError, recipes
from efficientad_jax.config import as_dict, replace
from efficientad_jax.detection.detector import DetectorSpec
from efficientad_jax.export.int8 import calibration_images, int8_model
from efficientad_jax.export.onnx_model import onnx_model
from efficientad_jax.export.programs import (
    detector_program,
    onnx_program,
    open_program,
    run_in_batches,
)
from efficientad_jax.export.stablehlo import stablehlo_bytes
from efficientad_jax.networks.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers.command import efficientad
from tests.helpers.detectors import random_detector, with_threshold
from tests.helpers.images import uint8_images
from tests.helpers.openvino import import_openvino
from tests.helpers.torch_reference import torch_autoencoder, torch_params, torch_pdn

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install -e '.[test]'")
functional = torch.nn.functional

SPEC = DetectorSpec("small", 3, (128, 160), False, "float32", autoencoder=True)


@pytest.fixture(scope="module")
def detector():
    return random_detector(SPEC, score_values=20)


def assert_agrees(actual, expected):
    """Compares scores and maps, with a tolerance of 1e-4 of the range of the maps."""
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        assert actual[name].shape == values.shape
        assert actual[name].dtype == np.float32
        span = np.ptp(expected["combined" if name == "scores" else name])
        assert span > 0
        np.testing.assert_allclose(actual[name], values, rtol=0, atol=1e-4 * span)


@pytest.fixture(scope="module")
def images():
    return uint8_images(3, SPEC.input_size, block=8)


@pytest.fixture(scope="module")
def expected(detector, images):
    return detector_program(detector).run(images)


@pytest.fixture(scope="module")
def stablehlo(detector):
    return stablehlo_bytes(detector)


def torch_maps(detector, images):
    """Algorithm 2 in PyTorch."""
    spec, half = detector.spec, detector.spec.out_channels
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    teacher, student = (
        torch_pdn(torch_params(params), x, spec.size, spec.padding)
        for params in (detector.params.teacher, detector.params.student)
    )
    maps = {"local": (teacher - student[:, :half]).square().mean(1)}
    if spec.autoencoder:
        predicted = torch_autoencoder(
            torch_params(detector.params.autoencoder), x, teacher.shape[2:]
        )
        maps["global"] = (predicted - student[:, half:]).square().mean(1)
    margin = 0 if spec.padding else 4
    for name, quantiles in zip(maps, detector.calibration[:2], strict=False):
        values = maps[name]
        if detector.calibration.upsample_first:
            values = functional.interpolate(values[None], spec.input_size, mode="bilinear")[0]
            margin = 0
        maps[name] = 0.1 * (values - quantiles.a) / (quantiles.b - quantiles.a)
    combined = torch.stack(list(maps.values())).mean(0)
    maps = {"combined": combined, **maps}
    padded = {name: functional.pad(m, (margin,) * 4).detach().numpy() for name, m in maps.items()}
    scores = combined.flatten(1).topk(detector.calibration.score_values).values.mean(1)
    return {"scores": scores.detach().numpy(), **padded}


def open_openvino(model):
    openvino = import_openvino()
    core = openvino.Core()
    # float32 also on processors that support bfloat16.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    return lambda images: {
        output.get_any_name(): np.array(actual) for output, actual in compiled(images).items()
    }


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"autoencoder": False}, {"score_values": 10}),
        ({"input_size": (160, 128)}, {"upsample_first": True}),
        ({"size": "medium", "padding": True, "autoencoder": False}, {}),
    ],
    ids=["plain", "no autoencoder", "upsampled first", "medium, padded"],
)
def test_onnx_computes_algorithm_2(changes, options):
    detector = random_detector(SPEC._replace(**changes), **options)
    model = onnx_model(detector).SerializeToString()
    images = uint8_images(2, SPEC.input_size, block=8)
    if detector.spec.input_size == (160, 128):
        images = images.transpose(0, 2, 1, 3).copy()
    expected = torch_maps(detector, images)
    for run in (onnx_program(model).run, open_openvino(model)):
        for count in (2, 1):
            assert_agrees(run(images[:count]), {name: v[:count] for name, v in expected.items()})


def test_onnx_gives_the_detectors_maps(detector, images, expected):
    model = onnx_model(detector).SerializeToString()
    assert_agrees(run_in_batches(onnx_program(model), images), expected)


ONLY_JAX = """
import sys
sys.modules["efficientad_jax"] = None  # any import of it fails
import jax, jax.export, numpy as np
exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
assert set(exported.platforms) == {"cpu", "cuda", "tpu"}, exported.platforms
np.savez(sys.argv[3], **exported.call(np.load(sys.argv[2])))
"""


def test_stablehlo_needs_only_jax(stablehlo, images, expected, tmp_path):
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "program").write_bytes(stablehlo)
    files = [str(tmp_path / name) for name in ("program", "images.npy", "found.npz")]
    subprocess.run([sys.executable, "-c", ONLY_JAX, *files], cwd=tmp_path, check=True)
    with np.load(tmp_path / "found.npz") as actual:
        assert_agrees(dict(actual), expected)


def test_stablehlo_calls_nothing_outside_itself(stablehlo):
    program = jax.export.deserialize(bytearray(stablehlo)).mlir_module()
    assert "stablehlo.convolution" in program
    # JAX's check of the number of images.
    assert set(re.findall(r"custom_call\s*@?(\w+)", program)) <= {"shape_assertion"}


def test_int8_rounds_convolutions_and_keeps_the_scale_of_the_maps(detector, images, expected):
    model = int8_model(detector, images)
    rounded = onnx_program(model.SerializeToString()).run(images)
    for name in ("local", "global", "combined"):
        error = np.abs(rounded[name] - expected[name]).max() / np.ptp(expected[name])
        assert 1e-4 < error < 0.1, name
    for name in ("local", "global"):
        inside = np.s_[:, 4:-4, 4:-4]  # the margin is 0 in both
        quantiles = [np.quantile(m[name][inside], (0.9, 0.995)) for m in (rounded, expected)]
        np.testing.assert_allclose(*quantiles, rtol=1e-3)
    inside = rounded["combined"][:, 4:-4, 4:-4].reshape(len(images), -1)
    np.testing.assert_allclose(rounded["scores"], np.sort(inside)[:, -20:].mean(1), rtol=1e-5)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in ("teacher/conv2", "student/conv4"):
        assert constants[f"{name}/kernel_quantized"].data_type == onnx.TensorProto.INT8
        channels = constants[f"{name}/kernel_quantized"].dims[0]
        assert list(constants[f"{name}/kernel_scale"].dims) == [channels]
    assert not [name for name in constants if "autoencoder" in name and "quantized" in name]


def test_int8_of_constant_maps_is_refused():
    detector = random_detector(SPEC._replace(autoencoder=False))
    constant = np.full((2, *SPEC.input_size, 3), 128, np.uint8)
    with pytest.raises(InputError, match="maps of all 2 calibration images are constant"):
        int8_model(detector, constant)


def test_calibration_images_are_spread_over_the_folder(detector, tmp_path, monkeypatch):
    for i in range(102):
        pixels = np.full((2, 3, 3), i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:03}.png")
    for most, count in ((100, 100), (1000, 102)):
        monkeypatch.setattr("efficientad_jax.export.int8._MOST_LOADED", most)
        images, sizes = calibration_images(detector, str(tmp_path))
        assert images.shape == (count, *SPEC.input_size, 3)
        assert sizes == [(2, 3)] * count
        assert (images[0, 0, 0, 0], images[-1, 0, 0, 0]) == (0, 101)
    with pytest.raises(InputError, match="nowhere"):
        calibration_images(detector, "nowhere")


def test_other_files_are_refused_in_one_line(detector, tmp_path):
    def refused(name, match):
        with pytest.raises(InputError, match=match) as error:
            open_program(tmp_path / name)
        assert "\n" not in str(error.value)

    refused("none.onnx", r"none\.onnx: no such file")
    for name, form in (("a.onnx", "ONNX"), ("a.stablehlo", "StableHLO")):
        (tmp_path / name).write_bytes(b"neither")
        refused(name, f"cannot be read as {form}, expected")
    program = onnx_program(onnx_model(detector).SerializeToString())
    with pytest.raises(InputError, match="takes images of 128x160 pixels, found 64x64"):
        run_in_batches(program, np.zeros((1, 64, 64, 3), np.uint8))


def write_folder(folder):
    for split, count, seed in (("train/good", 4, 1), ("test/blot", 3, 2), ("test/good", 4, 3)):
        (folder / split).mkdir(parents=True)
        for i, image in enumerate(uint8_images(count, SPEC.input_size, seed, block=8)):
            Image.fromarray(image).save(folder / split / f"{i}.png")


def test_export_and_evaluation_of_what_was_exported(tmp_path):
    write_folder(tmp_path / "data")
    places = {
        "dataset.root": str(tmp_path / "data"),
        "dataset.data_dir": str(tmp_path / "tfds"),
        "model.input_height": SPEC.input_size[0],
        "model.input_width": SPEC.input_size[1],
    }
    config = as_dict(replace(recipes.folder(), places))
    detector = random_detector(SPEC._replace(autoencoder=False), config=config)
    detector = with_threshold(detector, 0.4)
    detector.save(tmp_path / "detector")
    int8, stablehlo = tmp_path / "new/int8.onnx", tmp_path / "a.stablehlo"
    result = efficientad(
        "export", tmp_path / "detector", "--format=onnx", "--int8", f"--output={int8}"
    )
    assert result.returncode == 0, result.stderr
    assert str(int8) in result.stdout
    assert [path.name for path in int8.parent.iterdir()] == ["int8.onnx"]
    stablehlo.write_bytes(stablehlo_bytes(detector))  # without properties, as of older versions
    result = efficientad("evaluate-exported", tmp_path / "detector", int8, stablehlo)
    assert result.returncode == 0, result.stderr
    # Images as the dataset has them: by name, 'test/blot' before 'test/good'.
    images = np.concatenate(
        [uint8_images(n, SPEC.input_size, seed, block=8) for n, seed in ((3, 2), (4, 3))]
    )

    def line(model, name, has_threshold=True):
        program = onnx_program(model)
        scores, verdicts = program.run(images)["scores"], ""
        if has_threshold:
            found, alarms = (scores[:3] >= program.threshold), (scores[3:] >= program.threshold)
            verdicts = (
                f"  threshold {program.threshold:.4g}: false alarms {alarms.sum()} of 4, "
                f"found {found.sum()} of 3"
            )
        return f"image AU-ROC {roc_auc_score([1, 1, 1, 0, 0, 0, 0], scores):.4f}{verdicts}  {name}"

    exact = onnx_model(detector).SerializeToString()
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        line(exact, tmp_path / "detector"),
        line(int8.read_bytes(), int8),
        line(exact, stablehlo, has_threshold=False),
    ]
    other = with_threshold(random_detector(detector.spec, seed=9), 0.4)
    (tmp_path / "other.onnx").write_bytes(onnx_model(other).SerializeToString())
    result = efficientad("evaluate-exported", tmp_path / "detector", tmp_path / "other.onnx")
    assert "other.onnx: was exported from another detector" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--format=onnx", "--output=a.stablehlo"), ("a.stablehlo", "ends in .onnx")),
        (("--format=stablehlo", "--output=a.stablehlo", "--int8"), ("--int8", "only onnx")),
        (("--format=onnx", "--output=a.onnx"), ("no detector.json",)),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(tmp_path, arguments, parts):
    arguments = [a.replace("--output=", f"--output={tmp_path}/") for a in arguments]
    result = efficientad("export", tmp_path, *arguments)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in parts)
    assert not list(tmp_path.iterdir())
