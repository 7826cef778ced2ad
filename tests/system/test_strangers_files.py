"""The claims of SECURITY.md about detectors and teachers from untrusted sources.

`.pth` files: storage/test_torch_checkpoint.py.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

from efficientad_jax import Detector, InputError, choose_threshold
from efficientad_jax.detection.spec import DetectorSpec
from efficientad_jax.detection.threshold import RegionRule
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import (
    FORMAT,
    Teacher,
    layer_shapes,
    load_teacher,
    save_teacher,
)
from tests.helpers.detectors import random_detector, random_params

SIZE = (128, 128)
SPEC = DetectorSpec("small", 1, SIZE, False, "float32", autoencoder=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "detector"
    scores = (0.5, 1.5)
    threshold = choose_threshold(scores, 0.5)
    detector = replace(random_detector(SPEC), threshold=threshold, validation_scores=scores)
    detector = replace(detector, region_rule=RegionRule(threshold, 9, scores))
    detector.save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a detector to be tampered with."""
    copy = tmp_path / "detector"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def arrays_of(folder):
    (file,) = folder.glob("arrays-*.safetensors")
    return file


def refused(folder, match):
    before = {path: path.lstat() for path in folder.parent.rglob("*")}
    with pytest.raises(InputError, match=match) as error:
        Detector.load(folder)
    assert str(error.value).isprintable()
    assert str(folder) in str(error.value)
    after = {path: path.lstat() for path in folder.parent.rglob("*")}
    assert before.keys() == after.keys()
    assert all(before[p].st_mtime_ns == after[p].st_mtime_ns for p in before)


def change(folder, *path, to):
    file = folder / "detector.json"
    record = json.loads(file.read_text())
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    file.write_text(json.dumps(record))


def replace_arrays(folder, content):
    """Arrays of any content under a digest that is right."""
    arrays_of(folder).unlink()
    digest = hashlib.sha256(content).hexdigest()
    change(folder, "arrays_sha256", to=digest)
    (folder / f"arrays-{digest[:16]}.safetensors").write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "size"), "large"),
        (("spec", "size"), ["small"]),
        (("spec", "out_channels"), 10**12),
        (("spec", "out_channels"), -1),
        (("spec", "out_channels"), True),
        (("spec", "out_channels"), 1.0),
        (("spec", "input_size"), [128]),
        (("spec", "input_size"), [2**40, 2**40]),
        (("spec", "input_size"), [129, 128]),
        (("spec", "input_size"), "128"),
        (("spec", "padding"), "yes"),
        (("spec", "dtype"), "float64"),
        (("spec", "dtype"), "O"),
        (("spec", "autoencoder"), 1),
        (("spec", "more"), 1),
        (("spec",), None),
        (("spec",), []),
        (("calibration",), None),
        (("calibration", "local"), {"a": 0.0, "b": float("nan")}),
        (("calibration", "local"), {"a": 0.0, "b": float("inf")}),
        (("calibration", "local"), {"a": 1.0, "b": 1.0}),
        (("calibration", "local"), {"a": "0", "b": 1.0}),
        (("calibration", "local"), None),
        (("calibration", "global"), {"a": 0.0, "b": 1.0}),
        (("calibration", "upsample_first"), "no"),
        (("threshold",), 0.5),
        (("threshold",), {}),
        (("threshold", "value"), float("nan")),
        (("threshold", "value"), float("inf")),
        (("threshold", "value"), 1),
        (("threshold", "value"), 10**400),
        (("threshold", "false_alarm_rate"), 1.0),
        (("threshold", "low"), -0.5),
        (("threshold", "low"), 0.99),
        (("threshold", "high"), 1.5),
        (("threshold", "high"), "1"),
        (("threshold", "images"), 0),
        (("threshold", "images"), True),
        (("threshold", "images"), 2.0),
        (("threshold", "more"), 1.0),
        (("validation_scores",), None),
        (("validation_scores",), {"0": 1.0}),
        (("validation_scores",), [float("nan")]),
        (("validation_scores",), [1]),
        (("validation_scores",), [[1.0]]),
        (("regions",), []),
        (("regions",), {}),
        (("regions", "more"), 1),
        (("regions", "threshold"), None),
        (("regions", "threshold"), 0.5),
        (("regions", "threshold", "value"), float("nan")),
        (("regions", "threshold", "margin"), -1.0),
        (("regions", "smallest_area"), 0),
        (("regions", "smallest_area"), 1.0),
        (("regions", "validation_scores"), [True]),
        (("config",), [1]),
        (("metrics",), None),
        (("arrays_sha256",), 7),
        (("arrays_sha256",), "../" * 20 + "abcd"),
        (("arrays_sha256",), "/etc/passwd".rjust(64, "/")),
        (("arrays_sha256",), "A" * 64),
        (("version",), 10**400),
        (("format",), "x" * 10_000),
    ],
)
def test_a_record_of_anything_else_is_refused(folder, path, value):
    change(folder, *path, to=value)
    refused(folder, r"detector\.json|detector /")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"version": ' + b"9" * 10_000 + b"}",
        b"null",
        b'"' + b"a" * 1000 + b'"',
    ],
    ids=["empty", "not UTF-8", "deep", "deeper", "a number without end", "null", "text"],
)
def test_a_record_that_is_no_json_object_is_refused(folder, content):
    (folder / "detector.json").write_bytes(content)
    refused(folder, "detector.json: ")


def test_a_record_without_end_is_not_read(folder):
    with (folder / "detector.json").open("wb") as file:
        file.truncate(1 << 40)  # a hole, no bytes
    refused(folder, "1099511627776 bytes, expected at most")


@pytest.mark.parametrize("name", ["detector.json", "arrays"])
def test_no_link_leads_out_of_the_folder(folder, tmp_path, name):
    file = folder / name if name == "detector.json" else arrays_of(folder)
    outside = tmp_path / "outside"
    outside.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(outside)
    refused(folder, "is a symbolic link")


@pytest.mark.parametrize("name", ["detector.json", "arrays"])
def test_pipes_and_folders_are_not_waited_for(folder, name):
    file = folder / name if name == "detector.json" else arrays_of(folder)
    file.unlink()
    os.mkfifo(file)
    refused(folder, "is a pipe, device or socket")
    file.unlink()
    file.mkdir()
    refused(folder, "is a folder")


def header(entries):
    encoded = json.dumps(entries).encode()
    return len(encoded).to_bytes(8, "little") + encoded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "cannot be read as safetensors"),
        ((2**63).to_bytes(8, "little"), "cannot be read as safetensors"),
        ((2**33).to_bytes(8, "little") + b"{}", "cannot be read as safetensors"),
        (header({}), "has shape None"),
        (
            header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
            "cannot be read as safetensors",
        ),
        (
            header({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 4]}}) + bytes(4),
            "cannot be read as safetensors",
        ),
        (
            header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}) + bytes(4),
            "cannot be read as safetensors",
        ),
        (header({"a\n": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}), "has shape"),
        (save({"a": np.zeros(3, np.float32)}), "has shape"),
    ],
)
def test_headers_that_lie_are_refused(folder, content, match):
    replace_arrays(folder, content)
    refused(folder, match)


def shapes_of(folder):
    content = arrays_of(folder).read_bytes()
    entries = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return {name: entry["shape"] for name, entry in entries.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "fill", "match"),
    [
        (np.float64, 0, "is F64, expected F32"),
        (np.int8, 0, "is I8, expected F32"),
        (np.float32, np.nan, "holds values that are not finite"),
        (np.float32, np.inf, "holds values that are not finite"),
    ],
)
def test_arrays_of_another_type_or_not_finite_are_refused(folder, dtype, fill, match):
    arrays = {name: np.full(shape, fill, dtype) for name, shape in shapes_of(folder).items()}
    replace_arrays(folder, save(arrays))
    refused(folder, match)


LIMITED = """
import resource, sys
from efficientad_jax import Detector, InputError
from efficientad_jax.networks.teacher import load_teacher
from efficientad_jax.storage.torch_checkpoint import read_torch_checkpoint
import jax; jax.devices()
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
for kind, path in (argument.split("=", 1) for argument in sys.argv[1:]):
    load = {"detector": Detector.load, "teacher": load_teacher, "pth": read_torch_checkpoint}[kind]
    try:
        load(path)
    except InputError as error:
        print(error)
    else:
        print("loaded", path)
"""


@pytest.mark.slow
def test_a_gigabyte_of_memory_is_enough_for_every_lie(folder, tmp_path):
    """With more they would not be noticed; files themselves are of some kilobytes, or holes."""
    claims = tmp_path / "claims"
    claims.mkdir()
    (claims / "detector.json").write_text((folder / "detector.json").read_text())
    change(claims, "spec", "out_channels", to=4096)
    change(claims, "spec", "input_size", to=[4096, 4096])
    change(claims, "spec", "autoencoder", to=True)
    change(claims, "calibration", "global", to={"a": 0.0, "b": 1.0})
    digest = json.loads((claims / "detector.json").read_text())["arrays_sha256"]
    (claims / f"arrays-{digest[:16]}.safetensors").write_bytes(save({"a": np.zeros(3)}))

    shapes = layer_shapes("small", 4096)
    metadata = {"format": FORMAT, "size": "small", "out_channels": "4096", "record": "{}"}
    offset, entries = 0, {"__metadata__": metadata}
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        entries[name] = {
            "dtype": "F32",
            "shape": [*shape[:-1], shape[-1] + 1],
            "data_offsets": [offset, offset + size],
        }
        offset += size
    (tmp_path / "t.safetensors").write_bytes(header(entries))
    with (tmp_path / "hole.pth").open("wb") as file:
        file.truncate(1 << 40)
    result = subprocess.run(
        [
            *(sys.executable, "-c", LIMITED),
            *(f"detector={claims}", f"teacher={tmp_path / 't.safetensors'}"),
            *(f"pth={tmp_path / 'hole.pth'}", f"detector={folder}"),
        ],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert all(str(tmp_path) in line for line in lines[:3])
    assert "expected at most" in lines[2]
    assert lines[3] == f"loaded {folder}"


def teacher_file(path, **metadata):
    shapes = layer_shapes("small", 2)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    known = {"format": FORMAT, "size": "small", "out_channels": "2", "record": "{}"}
    kept = {name: value for name, value in (known | metadata).items() if value is not None}
    path.write_bytes(save(tensors, kept))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"format": "pickle"}, "format 'pickle'"),
        ({"size": None}, "size None"),
        ({"size": "large"}, "size 'large'"),
        ({"out_channels": None}, "metadata cannot be read"),
        ({"out_channels": "two"}, "metadata cannot be read"),
        ({"out_channels": "1" * 5000}, "metadata cannot be read"),
        ({"out_channels": "99999999"}, "99999999 channels"),
        ({"out_channels": "0"}, "0 channels"),
        ({"out_channels": "3"}, "has shape"),
        ({"record": None}, "metadata cannot be read"),
        ({"record": "["}, "metadata cannot be read"),
        ({"record": "[" * 100_000}, "metadata cannot be read"),
        ({"record": "[]"}, "a record of type list"),
    ],
)
def test_a_teacher_whose_metadata_lies_is_refused(tmp_path, metadata, match):
    path = teacher_file(tmp_path / "teacher.safetensors", **metadata)
    with pytest.raises(InputError, match=match) as error:
        load_teacher(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_a_teacher_of_values_that_are_not_finite_is_refused(tmp_path):
    params = random_params(PatchDescriptionNetwork("small", 2), (64, 64))
    params["params"]["conv1"]["bias"] = jnp.full((128,), jnp.nan)
    save_teacher(tmp_path / "teacher.safetensors", Teacher("small", 2, params, {}))
    with pytest.raises(InputError, match=r"conv1\.bias holds values that are not finite"):
        load_teacher(tmp_path / "teacher.safetensors")


def test_a_teacher_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "teacher.safetensors")
    with pytest.raises(InputError, match="is a pipe, device or socket"):
        load_teacher(tmp_path / "teacher.safetensors")
