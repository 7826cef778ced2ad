"""The same seed gives the same detector and the same maps, bit for bit; another seed does not."""

import jax
import numpy as np
import pytest
from PIL import Image

from efficientad_jax.config import Config, ModelConfig, TrainConfig, replace
from efficientad_jax.data.loading import Dataset, ImageSet
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, save_teacher
from tests.helpers.detectors import random_params

pytestmark = pytest.mark.slow

SIDE = 128


def image_set(count, seed):
    images = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    good = ["good"] * count
    names = [f"{i}.png" for i in range(count)]
    labels = np.zeros(count, np.int64)
    return ImageSet(images, labels, names, good, [None] * count, [(SIDE, SIDE)] * count)


@pytest.fixture
def config(tmp_path):
    photograph = image_set(1, 2).images[0]
    (tmp_path / "photographs").mkdir()
    Image.fromarray(photograph).save(tmp_path / "photographs" / "0.png")
    params = random_params(PatchDescriptionNetwork("small", 32), (SIDE, SIDE))
    save_teacher(tmp_path / "teacher.safetensors", Teacher("small", 32, params, {}))
    return Config(
        model=ModelConfig(input_height=SIDE, input_width=SIDE),
        train=TrainConfig(steps=2, steps_per_dispatch=1),
        pretraining_images=str(tmp_path / "photographs"),
        teacher=str(tmp_path / "teacher.safetensors"),
    )


def test_the_same_seed_gives_the_same_detector(config, tmp_path):
    dataset = Dataset(image_set(3, 0), image_set(2, 1), image_set(0, 0))
    unseen = image_set(2, 3).images

    def fit(name, seed):
        detector = fit_detector(replace(config, {"seed": seed}), dataset, tmp_path / name)
        return jax.device_get((detector.params, detector.calibration, detector.detect(unseen)))

    first, second, other = fit("first", 5), fit("second", 5), fit("other", 6)
    for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    assert not np.array_equal(first[2].scores, other[2].scores)
