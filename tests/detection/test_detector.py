"""The detector as people use it: on images of every kind, saved and loaded."""

import io
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from efficientad_jax import Detector, InputError
from efficientad_jax.detection import detector as detector_module
from efficientad_jax.detection.inference import jitted_detect
from efficientad_jax.detection.spec import DetectorSpec
from tests.helpers.detectors import random_detector
from tests.helpers.images import picture

SPEC = DetectorSpec("small", 2, (128, 128), False, "float32", autoencoder=False)


@pytest.fixture(scope="module")
def detector():
    return random_detector(SPEC, config={"seed": 1})


@pytest.mark.slow
def test_maps_have_the_size_of_each_image(detector, tmp_path):
    rgb = picture()
    gray = rgb[..., 0]
    encoded = io.BytesIO()
    Image.fromarray(rgb).save(encoded, "PNG")
    (tmp_path / "a.png").write_bytes(encoded.getvalue())
    kinds = [
        rgb,
        gray,
        np.dstack([rgb, gray]),
        gray.astype(np.uint16) * 257,
        Image.fromarray(rgb),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        encoded.getvalue(),
        picture(200, 40),
    ]
    found = detector(kinds)
    assert [d.anomaly_map.shape for d in found] == [(70, 90)] * 8 + [(200, 40)]
    assert all(d.global_map is None for d in found)
    scores = [d.score for d in found]
    # The same picture, whatever it comes as; gray in 8 and 16 bits is the same too.
    assert scores[0] == scores[2] == scores[4] == scores[5] == scores[6] == scores[7]
    assert scores[1] == scores[3] != scores[0]


def test_a_single_image_is_as_in_a_list(detector):
    one = detector(picture())
    among = detector([picture(seed=1), picture(), picture(seed=2)])[1]
    assert one.score == pytest.approx(among.score, rel=1e-5)
    np.testing.assert_allclose(one.anomaly_map, among.anomaly_map, atol=1e-5)
    assert detector([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("singly", [True, False])
def test_any_number_of_images_takes_two_compiled_programs_at_most(detector, monkeypatch, singly):
    # As on a CPU, and as elsewhere, where the last batch is filled up.
    monkeypatch.setattr(detector_module, "runs_images_sequentially", lambda networks: singly)
    jitted_detect.clear_cache()
    singly_scored = [detector(picture(64 + i, 64)).score for i in range(11)]
    for count in (1, 2, 5, 8, 11, 1):
        found = detector([picture(64 + i, 64) for i in range(count)])
        np.testing.assert_allclose([one.score for one in found], singly_scored[:count], rtol=1e-5)
    assert jitted_detect._cache_size() == (1 if singly else 2)


def test_round_trip_is_exact(detector, tmp_path):
    measured = detector.with_metrics({"image_auroc": 0.5})
    measured.save(tmp_path / "detector")
    measured.save(tmp_path / "detector")  # replaces
    loaded = Detector.load(tmp_path / "detector")
    assert (loaded.spec, loaded.calibration) == (SPEC, detector.calibration)
    assert (loaded.config, loaded.metrics) == ({"seed": 1}, {"image_auroc": 0.5})
    for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(detector.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_change_of_the_record_hashes_no_arrays(detector, tmp_path, monkeypatch):
    folder = tmp_path / "detector"
    changed = replace(detector)
    changed.save(folder)
    before = json.loads((folder / "detector.json").read_text())
    other = replace(detector, params=jax.tree.map(lambda leaf: leaf + 1, detector.params))
    other.save(tmp_path / "other")

    def refuse(params):
        raise AssertionError("arrays were serialized")

    with monkeypatch.context() as context:
        context.setattr(detector_module, "serialized_arrays", refuse)
        for known in (changed, Detector.load(folder)):
            known.with_metrics({"image_auroc": 0.25}).save_record(folder)
            after = json.loads((folder / "detector.json").read_text())
            assert after == before | {"metrics": {"image_auroc": 0.25}}
    # The digest is that of other parameters after they were replaced.
    replace(changed, params=other.params).save_record(tmp_path / "other")
    for a, b in zip(
        jax.tree.leaves(Detector.load(tmp_path / "other").params),
        jax.tree.leaves(other.params),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_rule_of_the_score_is_kept_and_earlier_versions_refuse_it(detector, tmp_path):
    rule = replace(detector, calibration=detector.calibration._replace(score_values=10))
    for each, version in ((detector, 2), (rule, 3)):
        each.save(tmp_path)
        assert Detector.load(tmp_path).calibration == each.calibration
        record = json.loads((tmp_path / "detector.json").read_text())
        assert record["version"] == version
    del record["calibration"]["score_values"]  # as it was before there was a choice
    change(tmp_path, calibration=record["calibration"])
    assert Detector.load(tmp_path).calibration == detector.calibration
    for values in (0, 501, 10.0, True, "max", None):
        change(tmp_path, calibration=record["calibration"] | {"score_values": values})
        with pytest.raises(InputError, match="score_values"):
            Detector.load(tmp_path)


def change(folder, **fields):
    file = folder / "detector.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.slow
def test_what_is_no_detector_is_refused_in_one_line(detector, tmp_path):
    folder = tmp_path / "detector"

    def refused(match):
        with pytest.raises(InputError, match=match) as error:
            Detector.load(folder)
        assert "\n" not in str(error.value)

    refused("no detector.json")
    detector.save(folder)
    change(folder, version=99)
    refused("version 99, this package reads versions 2, 3, 4")
    detector.save(folder)
    change(folder, spec={"size": "small"})
    refused("not as this package writes it")
    (folder / "detector.json").write_text('{"format": ')
    refused("cannot be read as JSON")
    (folder / "detector.json").write_text("[]")
    refused("not a detector's record")
    detector.save(folder)
    (arrays,) = folder.glob("arrays-*.safetensors")
    content = arrays.read_bytes()
    arrays.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("damaged, its bytes are not those that were saved")
    arrays.write_bytes(content[:-1])
    refused("cannot be read as safetensors")
    arrays.unlink()
    refused("no such file")


def test_an_image_that_cannot_be_read_is_named(detector, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match=r"broken\.png"):
        detector([picture(), tmp_path / "broken.png"])
