"""A run identifies its teacher by the content of the file, not by its path."""

import json

import numpy as np
import pytest

from efficientad_jax.config import Config, LossConfig, ModelConfig, TrainConfig
from efficientad_jax.data.loading import Dataset, ImageSet
from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.networks import teacher as teacher_module
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, load_teacher, save_teacher
from tests.helpers.detectors import random_params

pytestmark = pytest.mark.slow

SIDE = 128


def image_set(count, seed):
    images = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    names = [f"{i}.png" for i in range(count)]
    sizes = [(SIDE, SIDE)] * count
    return ImageSet(
        images, np.zeros(count, np.int64), names, ["good"] * count, [None] * count, sizes
    )


@pytest.fixture
def dataset():
    return Dataset(image_set(3, 0), image_set(2, 1), image_set(0, 0))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose teacher can be exchanged, as by an upgrade."""
    file = tmp_path / "package" / "pdn_small.safetensors"
    file.parent.mkdir()
    monkeypatch.setattr(teacher_module, "packaged_teacher", lambda size: file)

    def exchange(scale):
        params = random_params(PatchDescriptionNetwork("small", 2), (SIDE, SIDE))
        params["params"]["conv4"]["bias"] = params["params"]["conv4"]["bias"] + scale
        save_teacher(file, Teacher("small", 2, params, {"made": scale}))
        return file

    return exchange


def small_config(teacher=""):
    return Config(
        model=ModelConfig(input_height=SIDE, input_width=SIDE),
        losses=LossConfig(penalty=False, autoencoder=False),
        train=TrainConfig(steps=2, steps_per_dispatch=1),
        teacher=teacher,
    )


def test_a_run_whose_packaged_teacher_changed_is_refused(package, dataset, tmp_path):
    package(0.0)
    first = load_teacher().sha256
    fit_detector(small_config(), dataset, tmp_path / "run")
    package(1.0)
    with pytest.raises(InputError, match=f"teacher of SHA-256 {first[:16]}") as refused:
        fit_detector(small_config(), dataset, tmp_path / "run")
    assert load_teacher().sha256[:16] in str(refused.value)
    assert "\n" not in str(refused.value)


def test_it_resumes_with_that_teacher_from_another_file(package, dataset, tmp_path):
    (tmp_path / "kept.safetensors").write_bytes(package(0.0).read_bytes())
    before = fit_detector(small_config(), dataset, tmp_path / "run")
    package(1.0)
    config = small_config(str(tmp_path / "kept.safetensors"))
    after = fit_detector(config, dataset, tmp_path / "run")
    assert after.validation_scores == before.validation_scores


def test_a_run_of_a_version_without_digests_had_the_teacher_of_that_time(
    package, dataset, tmp_path
):
    package(0.0)
    fit_detector(small_config(), dataset, tmp_path / "run")
    (tmp_path / "run" / "teacher.sha256").unlink()
    with pytest.raises(InputError, match="teacher of SHA-256 "):
        fit_detector(small_config(), dataset, tmp_path / "run")


def test_a_detector_names_its_teacher(package, dataset, tmp_path):
    package(0.0)
    fit_detector(small_config(), dataset, tmp_path / "run")
    detector = Detector.load(tmp_path / "run" / "detector")
    assert detector.teacher == {"sha256": load_teacher().sha256, "record": {"made": 0.0}}
    record = tmp_path / "run" / "detector" / "detector.json"
    older = json.loads(record.read_text())
    del older["teacher"]
    record.write_text(json.dumps(older))
    assert Detector.load(record.parent).teacher == {}
