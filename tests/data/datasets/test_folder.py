import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientad_jax.data.decoding import decode_image_and_peak
from efficientad_jax.data.loading import Dataset, ImageSet, load_dataset
from efficientad_jax.errors import InputError
from tests.helpers.images import HEIGHT, WIDTH, write_image, write_mask

GENERATOR = np.random.default_rng(0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four good images to train on; one good image, a crack with a mask and a dent without."""
    root = tmp_path / "bottle"
    for i in range(4):
        write_image(root / f"train/good/{i:03}.png")
    for name in ("good/000.png", "crack/000.png", "dent/000.png"):
        write_image(root / "test" / name)
    write_mask(root / "ground_truth/crack/000_mask.png")
    return root


def load(root: Path, category: str = "") -> Dataset:
    return load_folder(str(root), category)


def load_folder(root: str, category: str = "") -> Dataset:
    return load_dataset(
        "folder",
        category,
        root,
        data_dir="not read",
        image_size=(8, 8),
        validation_fraction=0.25,
        seed=0,
    )


def train_names(dataset: Dataset) -> list[str]:
    """Names of the images of train/good, those held out for validation included."""
    return sorted(dataset.train.names + dataset.validation.names)


def write_reference(root: Path) -> None:
    """A folder of every kind that is the same in all runs; some names sort otherwise as paths."""
    generator = np.random.default_rng(7)
    kinds = {"L": (), "RGB": (3,), "RGBA": (4,)}
    for i, name in enumerate(
        [f"train/good/{name}.png" for name in ("b", "a", "a/z", "a-1", "Z", "c.d", "11", "9")]
        + [f"test/{name}.png" for name in ("good/1", "good-2/1", "crack/b", "crack/b/c", "Dent/x")]
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (20 + 3 * i, 45 - 2 * i, *list(kinds.values())[i % 3])
        Image.fromarray(generator.integers(0, 256, shape, np.uint8)).save(path)
        if i in (10, 12):
            mask = root / name.replace("test", "ground_truth").replace(".png", "_mask.png")
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 2, shape[:2], np.uint8) * 255).save(mask)


def digest(images: ImageSet) -> str:
    """Of all that a split holds."""
    fields = hashlib.sha256(images.images.tobytes() + images.labels.tobytes())
    masks = [None if mask is None else (mask.shape, mask.tobytes()) for mask in images.masks]
    known = (images.images.shape, images.names, images.defects, images.sizes, masks, images.regions)
    fields.update(repr(known).encode())
    return fields.hexdigest()[:16]


def test_images_are_those_that_earlier_versions_read(tmp_path: Path) -> None:
    # Earlier versions read folders through copies of tensorflow-datasets: these are their digests.
    write_reference(tmp_path / "data")
    found = [digest(split) for split in load(tmp_path / "data")]
    shutil.copytree(tmp_path / "data/test/crack", tmp_path / "data/validation/good")
    found += [digest(split) for split in load(tmp_path / "data")]
    assert found == [
        "45c4ff44b4c130c6",
        "4b9f15e2907b2569",
        "5779e98d21c444f9",
        "030be9129858be84",
        "89d05d4bfe1548cb",
        "5779e98d21c444f9",
    ]


def test_layout_is_read(root: Path) -> None:
    dataset = load(root)
    assert train_names(dataset) == [f"train/good/{i:03}.png" for i in range(4)]
    assert len(dataset.validation.names) == 1
    test = dataset.test
    assert test.names == ["test/crack/000.png", "test/dent/000.png", "test/good/000.png"]
    assert test.defects == ["crack", "dent", "good"]
    assert test.labels.tolist() == [1, 1, 0]
    with Image.open(root / "ground_truth/crack/000_mask.png") as mask:
        expected = np.asarray(mask) == 255
    assert test.masks[0] is not None
    np.testing.assert_array_equal(test.masks[0], expected)
    assert test.masks[1:] == [None, None]


def test_mask_may_have_the_name_of_its_image(root: Path) -> None:
    (root / "ground_truth/crack/000_mask.png").rename(root / "ground_truth/crack/000.png")
    masks = load(root).test.masks
    assert [mask is not None for mask in masks] == [True, False, False]


def test_good_image_may_have_a_mask(root: Path) -> None:
    mask = root / "ground_truth/good/000_mask.png"
    write_mask(mask, value=0)
    masks = load(root).test.masks
    assert [mask is not None for mask in masks] == [True, False, True]
    write_mask(mask)
    with pytest.raises(InputError, match=rf"mask {mask}: marks 20 pixels of an image"):
        load(root)


def test_folders_inside_a_defect_keep_their_masks(root: Path) -> None:
    write_image(root / "test/crack/left/000.png")
    write_mask(root / "ground_truth/crack/left/000_mask.png")
    write_image(root / "test/crack/right/000.png")
    test = load(root).test
    masked = [name for name, mask in zip(test.names, test.masks, strict=True) if mask is not None]
    assert masked == ["test/crack/000.png", "test/crack/left/000.png"]
    assert set(test.defects) == {"crack", "dent", "good"}


def test_size_and_kind_of_image_are_free(root: Path) -> None:
    gray = Image.fromarray(GENERATOR.integers(0, 256, (30, 11), np.uint8))
    sixteen_bits = Image.fromarray(GENERATOR.integers(0, 65536, (5, 4), np.uint16))
    for i, suffix in enumerate([".bmp", ".GIF", ".jpeg", ".JPG", ".pgm", ".tif", ".webp"]):
        gray.save(root / f"train/good/gray_{i}{suffix}")
    sixteen_bits.save(root / "train/good/sixteen_bits.png")
    dataset = load(root)
    sizes = dict(
        zip(
            dataset.train.names + dataset.validation.names,
            dataset.train.sizes + dataset.validation.sizes,
            strict=True,
        )
    )
    assert len(sizes) == 4 + 7 + 1
    assert sizes["train/good/000.png"] == (HEIGHT, WIDTH)
    assert sizes["train/good/gray_1.GIF"] == (30, 11)
    assert sizes["train/good/sixteen_bits.png"] == (5, 4)


def test_what_is_no_image_is_ignored(root: Path) -> None:
    for name in ("Thumbs.db", ".DS_Store", "._000.png", "notes.txt", "test.csv", "LICENSE"):
        (root / "train/good" / name).write_bytes(b"nothing")
    assert len(train_names(load(root))) == 4


def test_own_validation_images_are_taken(root: Path) -> None:
    write_image(root / "validation/good/000.png")
    write_image(root / "validation/good/001.png")
    dataset = load(root)
    assert dataset.validation.names == ["validation/good/000.png", "validation/good/001.png"]
    assert dataset.train.names == [f"train/good/{i:03}.png" for i in range(4)]


def test_only_good_images_are_a_dataset(tmp_path: Path) -> None:
    root = tmp_path / "good ones"
    for i in range(5):
        write_image(root / f"{i}.jpg")
    dataset = load(root)
    assert train_names(dataset) == [f"{i}.jpg" for i in range(5)]
    assert len(dataset.validation.names) == 1
    assert not dataset.train.labels.any()
    assert (len(dataset.test.names), dataset.test.images.shape) == (0, (0, 8, 8, 3))
    write_image(root / "later/0.jpg")
    with pytest.raises(InputError, match=r"later/0\.jpg: lies in a folder of .*train/good"):
        load(root)


def test_one_good_image_is_too_few(tmp_path: Path) -> None:
    write_image(tmp_path / "few/0.png")
    with pytest.raises(InputError, match=r"few: 1 image, expected at least 2"):
        load(tmp_path / "few")


def test_category_is_a_folder_of_the_root(root: Path) -> None:
    by_category = load(root.parent, "bottle")
    assert by_category.test.names == load(root).test.names


def test_unknown_category_lists_the_known_ones(root: Path) -> None:
    write_image(root.parent / "cable/train/good/000.png")
    (root.parent / "empty").mkdir()
    with pytest.raises(InputError, match=r"'cabel'.*expected one of: bottle, cable$"):
        load(root.parent, "cabel")
    with pytest.raises(InputError, match=r"no folder 'train'.*category of: bottle, cable$"):
        load(root.parent)
    with pytest.raises(InputError, match=r"'left'.*\(none there\)"):
        load(root, "left")


def test_missing_folders_are_named(root: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        load(root / "nowhere")
    with pytest.raises(InputError, match="root is empty"):
        load_folder("")
    (root / "train/good").rename(root / "train/fine")
    with pytest.raises(InputError, match=r"train/good.*no such folder"):
        load(root)
    (root / "train/good").mkdir()
    with pytest.raises(InputError, match=r"train/good: no images"):
        load(root)
    (root / "train/good").rmdir()
    (root / "train/fine").rename(root / "train/good")
    # Masks without their images.
    (root / "test").rename(root / "tests")
    with pytest.raises(InputError, match=r"bottle/test.*no such folder"):
        load(root)


def test_one_training_image_is_too_few(root: Path) -> None:
    for i in range(1, 4):
        (root / f"train/good/{i:03}.png").unlink()
    with pytest.raises(InputError, match=r"train/good: 1 image, expected at least 2"):
        load(root)


def test_image_outside_of_a_kind_of_defect_is_refused(root: Path) -> None:
    write_image(root / "test/000.png")
    with pytest.raises(InputError, match=r"test/000\.png: lies in 'test' itself"):
        load(root)


@pytest.mark.parametrize(
    "stray",
    [
        "ground_truth/crack/001_mask.png",
        "ground_truth/scratch/000_mask.png",
        "ground_truth/000_mask.png",
        "ground_truth/crack/000/000.png",
        "ground_truth/crack/_mask.png",
    ],
)
def test_mask_without_image_is_refused(root: Path, stray: str) -> None:
    write_mask(root / stray)
    with pytest.raises(InputError, match=rf"mask .*{re.escape(stray)}: belongs to no image"):
        load(root)


def test_second_mask_of_an_image_is_refused(root: Path) -> None:
    write_mask(root / "ground_truth/crack/000.png")
    with pytest.raises(InputError, match="for the same image as"):
        load(root)


def test_mask_that_fits_two_images_is_refused(root: Path) -> None:
    write_image(root / "test/crack/000.bmp")
    with pytest.raises(InputError, match=r"000_mask\.png: could belong to .*bmp or to .*png"):
        load(root)


def test_mask_of_another_size_is_refused(root: Path) -> None:
    path = write_mask(root / "ground_truth/crack/000_mask.png", size=(9, 6))
    with pytest.raises(InputError, match=rf"mask {re.escape(str(path))}: 9x6 .* the 12x18"):
        load(root)


@pytest.mark.parametrize(
    "name", ["train/good/002.png", "test/dent/000.png", "ground_truth/crack/000_mask.png"]
)
@pytest.mark.parametrize("damage", ["cut off", "no image", "empty"])
def test_broken_file_is_named(root: Path, name: str, damage: str) -> None:
    path = root / name
    content = {"cut off": path.read_bytes()[:60], "no image": b"text", "empty": b""}[damage]
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"image {re.escape(str(path))}: ") as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_loading_prints_and_writes_nothing(
    root: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = sorted(root.parent.rglob("*"))
    load(root)
    assert sorted(root.parent.rglob("*")) == before
    assert not Path("not read").exists()
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


def test_changed_folder_is_read_again(root: Path) -> None:
    def pixels(dataset: Dataset) -> dict[str, bytes]:
        images = [*dataset.train.images, *dataset.validation.images, *dataset.test.images]
        names = dataset.train.names + dataset.validation.names + dataset.test.names
        return {name: image.tobytes() for name, image in zip(names, images, strict=True)}

    first = pixels(load(root))
    path = root / "train/good/001.png"
    old = path.stat()
    write_image(path)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    second = pixels(load(root))
    assert {name for name in first if first[name] != second[name]} == {"train/good/001.png"}

    write_image(root / "test/dent/001.png")
    assert pixels(load(root)).keys() - second.keys() == {"test/dent/001.png"}
    (root / "test/dent/001.png").unlink()
    path.rename(path.with_name("renamed.png"))
    third = pixels(load(root))
    assert third.keys() ^ second.keys() == {"train/good/001.png", "train/good/renamed.png"}

    write_mask(root / "ground_truth/dent/000_mask.png")
    assert [mask is not None for mask in load(root).test.masks] == [True, True, False]
    (root / "ground_truth/crack/000_mask.png").unlink()
    assert [mask is not None for mask in load(root).test.masks] == [False, True, False]


def test_each_image_is_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = Counter()

    def count(source: Path, **options: int) -> tuple[np.ndarray, int | None]:
        decoded[source.relative_to(root).as_posix()] += 1
        return decode_image_and_peak(source, **options)

    monkeypatch.setattr("efficientad_jax.data.examples.decode_image_and_peak", count)
    dataset = load(root)
    assert decoded == Counter(train_names(dataset) + dataset.test.names)


@pytest.mark.slow
def test_folders_are_read_without_tensorflow_datasets(root: Path) -> None:
    code = (
        "import sys\n"
        "from efficientad_jax.data.loading import load_dataset\n"
        f"load_dataset('folder', '', {str(root)!r}, data_dir='', image_size=(8, 8),\n"
        "             validation_fraction=0.2, seed=0)\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["größe 2", "a.b-c", "瓶", "+"])
def test_folder_may_have_any_name(root: Path, name: str) -> None:
    renamed = root.rename(root.with_name(name))
    assert len(train_names(load(renamed))) == 4


def test_magnetic_tiles_are_a_folder(data_root: Path) -> None:
    from efficientad_jax.data.datasets.folder import list_examples

    root = data_root / "magnetic_tile"
    splits = list_examples(root)
    counts = Counter(example.defect for example in splits["test"])
    assert counts == {
        folder.name: len(list(folder.glob("*.jpg"))) for folder in (root / "test").iterdir()
    }
    for example in splits["test"]:
        assert (not example.masks) == (example.defect == "good")
    assert len(splits["train"]) == len(os.listdir(root / "train/good"))
