import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientad_jax.data.decoding import decode_image, resize_image
from efficientad_jax.data.files import list_images
from efficientad_jax.data.loading import Dataset, load_dataset, load_images
from efficientad_jax.errors import InputError
from tests.helpers.images import write_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "bottle"
    for i in range(10):
        write_image(root / f"train/good/{i}.png", height=5 + i)
    write_image(root / "test/good/0.png")
    write_image(root / "test/crack/0.png")
    return root


def load(
    root: Path, fraction: float = 0.2, seed: int = 0, image_size: tuple[int, int] = (8, 12)
) -> Dataset:
    where = str(root.parent / "prepared")
    return load_dataset(
        "folder",
        "",
        str(root),
        data_dir=where,
        image_size=image_size,
        validation_fraction=fraction,
        seed=seed,
    )


def test_images_are_those_of_the_files(root: Path) -> None:
    dataset = load(root)
    for split in dataset:
        assert split.images.dtype == np.uint8
        assert split.images.shape == (len(split.names), 8, 12, 3)
        assert len(split.labels) == len(split.defects) == len(split.masks) == len(split.sizes)
        for image, name, size in zip(split.images, split.names, split.sizes, strict=True):
            with Image.open(root / name) as stored:
                assert size == (stored.height, stored.width)
                resized = stored.resize((12, 8), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(image, np.asarray(resized))


def test_images_are_ordered_by_name(root: Path) -> None:
    write_image(root / "train/good/A.png")
    for split in load(root):
        assert split.names == sorted(split.names)


def test_loading_repeats(root: Path) -> None:
    first, second = load(root), load(root)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        assert a.names == b.names


@pytest.mark.parametrize(
    ("fraction", "held_out"), [(0.0, 1), (0.01, 1), (0.2, 2), (0.5, 5), (0.99, 9), (1.0, 9)]
)
def test_validation_is_a_part_of_train(root: Path, fraction: float, held_out: int) -> None:
    train, validation, test = load(root, fraction)
    assert len(validation.names) == held_out
    assert not set(train.names) & set(validation.names)
    every = {f"train/good/{i}.png" for i in range(10)}
    assert set(train.names) | set(validation.names) == every
    assert test.names == ["test/crack/0.png", "test/good/0.png"]
    # Every field is split alike.
    for split in (train, validation):
        for image, name, size in zip(split.images, split.names, split.sizes, strict=True):
            stored = decode_image(root / name)
            assert size == stored.shape[:2]
            np.testing.assert_array_equal(image, resize_image(stored, 8, 12))


def test_seed_decides_what_is_held_out(root: Path) -> None:
    def held_out(seed: int) -> tuple[str, ...]:
        return tuple(load(root, seed=seed).validation.names)

    assert held_out(0) == held_out(0)
    assert len({held_out(seed) for seed in range(5)}) > 1


def test_unknown_dataset_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'mvtec'.*expected one of: mvtec_ad, .*, folder"):
        load_dataset(
            "mvtec",
            "",
            "",
            data_dir=str(tmp_path),
            image_size=(8, 8),
            validation_fraction=0.1,
            seed=0,
        )


def test_unknown_category_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'thin_film'.*expected one of: mono, poly"):
        load_dataset(
            "elpv",
            "thin_film",
            "",
            data_dir=str(tmp_path),
            image_size=(8, 8),
            validation_fraction=0.1,
            seed=0,
        )


def test_files_are_loaded_in_the_order_given(root: Path) -> None:
    paths = [root / f"train/good/{i}.png" for i in (7, 2, 9, 0)]
    loaded = load_images(paths, (8, 12))
    assert loaded.dtype == np.uint8
    expected = [resize_image(decode_image(path), 8, 12) for path in paths]
    np.testing.assert_array_equal(loaded, np.stack(expected))


def test_broken_file_is_named(root: Path) -> None:
    broken = root / "train/good/3.png"
    broken.write_bytes(b"text")
    with pytest.raises(InputError, match=r"3\.png: not an image") as caught:
        load_images([root / "train/good/0.png", broken], (8, 8))
    assert "\n" not in str(caught.value)


def test_images_are_listed_in_order_and_from_all_folders(tmp_path: Path) -> None:
    names = ["b.png", "a/z.JPG", "a/b/c.tiff", "c.png"]
    for name in names:
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "._b.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    write_image(tmp_path / ".ipynb_checkpoints/b-checkpoint.png")
    assert list_images(tmp_path) == sorted(tmp_path / name for name in names)


def test_service_folders_and_heat_maps_are_no_data(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "sub/b.png")
    for folder in (
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "__MACOSX",
        "Thumbs.db",
        "sub/@eaDir/b.png",
    ):
        write_image(tmp_path / folder / "thumb.jpg")
    for name in ("a_heatmap.png", "sub/b.png_heatmap.png"):
        write_image(tmp_path / name)
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a.png", "sub/b.png"]


def test_links_to_folders_are_followed_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_image(tmp_path / "elsewhere/1.png")
    root = tmp_path / "root"
    write_image(root / "real/0.png")
    (root / "a-link").symlink_to(tmp_path / "elsewhere")
    (root / "back").symlink_to(root)
    (root / "again").symlink_to(root / "real")
    with caplog.at_level(logging.WARNING):
        found = list_images(root)
    assert [path.relative_to(root).as_posix() for path in found] == ["a-link/1.png", "real/0.png"]
    assert [record.args[0] for record in caplog.records] == [f"{root}/again", f"{root}/back"]


def test_a_folder_that_a_link_leads_to_keeps_its_place(tmp_path: Path) -> None:
    write_image(tmp_path / "crack/0.png")
    write_image(tmp_path / "scratch/left/0.png")
    (tmp_path / "crack/scratch").symlink_to(tmp_path / "scratch/left")
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["crack/0.png", "scratch/left/0.png"]


def test_images_with_the_name_of_heat_maps_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "a_heatmap.png", "b.jpg", "b.jpg_heatmap.png"):
        write_image(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        assert len(list_images(tmp_path)) == 2
        assert not caplog.records
        write_image(tmp_path / "camera_7_heatmap.png")
        assert len(list_images(tmp_path)) == 2
    assert "left out 1 with a name *_heatmap.png" in caplog.text


def test_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.*no such folder"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match="no images, expected files ending in"):
        list_images(tmp_path)
    with pytest.raises(InputError, match=r"notes\.txt.*no such folder"):
        list_images(tmp_path / "notes.txt")
