"""Folders as people have them: without test images, with links, of file servers and of cameras."""

import logging
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientad_jax.data.datasets.folder import categories_in
from efficientad_jax.data.loading import load_dataset
from efficientad_jax.errors import InputError
from tests.data.datasets.test_folder import load, root, train_names
from tests.helpers.images import write_image

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


def warnings_of(root: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load(root)
    return [record.getMessage() for record in caplog.records]


def test_names_of_images_and_masks_may_be_composed_or_not(root: Path) -> None:
    composed, separated = (unicodedata.normalize(form, "größe é") for form in ("NFC", "NFD"))
    (root / "test/crack/000.png").rename(root / f"test/crack/{composed}.png")
    (root / "ground_truth/crack/000_mask.png").rename(
        root / f"ground_truth/crack/{separated}_mask.png"
    )
    (root / "ground_truth/crack").rename(root / f"ground_truth/{composed}")
    (root / "test/crack").rename(root / f"test/{separated}")
    test = load(root).test
    assert [mask is not None for mask in test.masks] == [False, False, True]
    assert test.defects == ["dent", "good", separated]
    root.rename(root.with_name(separated))
    assert load(root.parent, composed).test.defects == test.defects


def test_good_may_be_written_in_capitals(root: Path) -> None:
    before = load(root)
    (root / "train/good").rename(root / "train/Good")
    (root / "test/good").rename(root / "test/GOOD")
    dataset = load(root)
    assert sorted(dataset.test.defects) == sorted(before.test.defects)
    assert len(train_names(dataset)) == 4


def test_training_images_in_another_place_are_named(root: Path) -> None:
    (root / "train/good").rename(root / "train/OK")
    with pytest.raises(InputError, match=r"train/good: no such folder, found in .*train: OK; move"):
        load(root)
    for path in (root / "train/OK").iterdir():
        path.rename(root / "train" / path.name)
    with pytest.raises(InputError, match=r"found in .*train: images, OK; move the good images"):
        load(root)


def test_folders_of_images_that_are_not_used_are_named(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "test/empty").mkdir()
    assert warnings_of(root, caplog) == []
    write_image(root / "Validation/good/0.png")
    write_image(root / "train/scratch/0.png")
    (root / "@eaDir").mkdir()
    write_image(root / "@eaDir/thumb.jpg")
    assert [message.split(": ")[0] for message in warnings_of(root, caplog)] == [
        f"image folder {root}/Validation",
        f"image folder {root}/train/scratch",
    ]


def test_a_test_without_good_images_is_reported(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "test/good").rename(root / "test/ok")
    (message,) = warnings_of(root, caplog)
    assert message == (
        f"test folder {root}/test: no folder 'good' in it, so that all images count as anomalous; "
        "found crack, dent, ok"
    )


def test_images_in_two_splits_are_reported(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(root / "train/good/001.png", root / "test/good/again.png")
    (message,) = warnings_of(root, caplog)
    assert message.startswith("1 of 4 test images are also training or validation images, such as ")
    assert "test/good/again.png and train/good/001.png" in message
    (root / "test/good/again.png").unlink()
    for i in range(12):
        shutil.copy(root / "train/good/001.png", root / f"train/good/copy {i}.png")
    (message,) = warnings_of(root, caplog)
    assert " validation images are also training" in message
