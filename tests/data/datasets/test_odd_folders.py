"""Folders as people have them: without test images, with links, of file servers and of cameras."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientad_jax.data.datasets.folder import categories_in
from efficientad_jax.data.loading import load_dataset
from tests.data.datasets.test_folder import load, root, train_names

__all__ = ["root"]  # the fixture


@pytest.mark.parametrize("empty", [(), ("test",), ("test/good", "validation/good", "ground_truth")])
def test_good_images_in_train_are_a_dataset(root: Path, empty: tuple[str, ...]) -> None:
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "ground_truth")
    for folder in empty:
        (root / folder).mkdir(parents=True)
    dataset = load(root)
    assert len(train_names(dataset)) == 4
    assert dataset.test.names == []


def test_linked_folders_of_defects_are_read(root: Path) -> None:
    (root / "test/crack").rename(root.parent / "cracks")
    (root / "test/crack").symlink_to(root.parent / "cracks")
    dataset = load(root)
    assert "test/crack/000.png" in dataset.test.names
    assert sum(mask is not None for mask in dataset.test.masks) == 1


def test_service_folders_are_no_categories(root: Path) -> None:
    for name in ("#recycle", "@eaDir"):
        shutil.copytree(root, root.parent / name)
    assert categories_in(str(root.parent)) == [root.name]


def test_images_of_cameras_keep_their_gray_levels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    for i in range(4):
        pixels = rng.integers(0, 4096, (16, 16)).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")

    def levels(**options: int) -> int:
        dataset = load_dataset(
            "folder",
            "",
            str(tmp_path),
            data_dir="",
            image_size=(16, 16),
            validation_fraction=0.25,
            seed=0,
            **options,
        )
        return len(np.unique(dataset.train.images))

    with caplog.at_level(logging.WARNING):
        assert levels() <= 17
        (record,) = caplog.records
        assert "--config.dataset.white_level=4095" in record.getMessage()
        caplog.clear()
        assert levels(white_level=4095) > 200
        Image.fromarray(np.full((16, 16), 60000, np.uint16)).save(tmp_path / "bright.png")
        levels()
        assert not caplog.records
