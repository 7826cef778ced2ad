"""Teacher features on disk: computed once, the same, and within their limit."""

import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientad_jax.storage.feature_cache import cached_features, clear_features, features_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "efficientad_jax" / "features"


class Teacher:
    """Counts the images that it describes."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.images += len(batch)
        return np.sqrt(batch[:, ::4, ::4].astype(np.float32))


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


def features(images: np.ndarray, teacher: Teacher, **options: Any) -> np.ndarray:
    defaults = {"identity": "t", "dataset": "d", "batch_size": 4, "limit_gb": 1.0}
    return np.concatenate(list(cached_features(images, teacher, **defaults | options)))


def test_each_image_is_computed_once_and_stays_the_same() -> None:
    images, teacher = random_images(10), Teacher()
    expected = Teacher()(images)
    for chosen in (slice(0, 7), slice(0, 7), slice(3, 10), slice(None, None, -1)):
        ours = features(images[chosen], teacher)
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, expected[chosen])
    assert teacher.images == 10
    features(images, teacher, identity="another teacher")
    assert teacher.images == 20
    features(images[:, :, ::-1], teacher)
    assert teacher.images == 30


def test_a_damaged_file_is_computed_again(own_cache: Path) -> None:
    images, teacher = random_images(2), Teacher()
    features(images, teacher)
    file = next(own_cache.glob("*.npy"))
    file.write_bytes(file.read_bytes()[:-1])
    np.testing.assert_array_equal(features(images, teacher), Teacher()(images))
    assert teacher.images == 3
    features(images, teacher)
    assert teacher.images == 3


def test_the_oldest_files_make_room(own_cache: Path) -> None:
    images, teacher = random_images(6), Teacher()
    features(images, teacher)
    size = next(own_cache.glob("*.npy")).stat().st_size
    # Image 0 was used last, then 5, 4 and so on.
    for age, image in enumerate(images):
        known = {file: file.stat().st_mtime_ns for file in own_cache.glob("*.npy")}
        features(image[None], Teacher())
        (used,) = [f for f, time in known.items() if f.stat().st_mtime_ns != time]
        os.utime(used, (1e9 - age, 1e9 - age))
    features(images[:1], Teacher(), limit_gb=3 * size / 1e9)
    assert len(list(own_cache.glob("*.npy"))) == 3
    teacher = Teacher()
    features(images[:3], teacher)
    assert teacher.images == 0
    features(images[3:], teacher)
    assert teacher.images == 3


def test_two_trainings_at_once_compute_each_image_once() -> None:
    images, teacher = random_images(40), Teacher()
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: results.append(features(images, teacher))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert teacher.images == 40
    assert len(results) == 3
    for result in results:
        np.testing.assert_array_equal(result, Teacher()(images))


def test_a_disk_that_cannot_be_written_only_costs_the_cache(
    own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_cache.parent.mkdir()
    own_cache.write_text("a file in the place of the folder")
    images = random_images(3)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(features(images, Teacher()), Teacher()(images))
    assert "teacher features are not kept on disk" in caplog.text


def test_the_cache_is_cleared() -> None:
    assert clear_features() == 0
    features(random_images(3), Teacher())
    assert clear_features() > 3 * 2 * 2 * 3 * 4
    assert not features_folder().exists()
