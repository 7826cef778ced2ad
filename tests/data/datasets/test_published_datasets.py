# long: the tests are the same for all of the published datasets
"""The builders of the published datasets: the files they read, prepare and refuse."""

import hashlib
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import paper
from efficientad_jax.config import read_config
from efficientad_jax.data.datasets.archive import Archive
from efficientad_jax.data.datasets.btad import Btad
from efficientad_jax.data.datasets.mvtec_ad import MvtecAd
from efficientad_jax.data.datasets.mvtec_ad2 import MvtecAd2
from efficientad_jax.data.datasets.mvtec_loco import MvtecLoco
from efficientad_jax.data.datasets.visa import Visa
from efficientad_jax.data.loading import Dataset, ImageSet, load_configured_dataset, load_dataset
from efficientad_jax.errors import InputError
from tests.helpers.dataset_trees import (
    TREES,
    write_btad,
    write_mask,
    write_mvtec_ad,
)
from tests.helpers.images import HEIGHT, WIDTH, write_image

pytestmark = pytest.mark.slow

BUILDERS = {
    "mvtec_ad": MvtecAd,
    "mvtec_loco": MvtecLoco,
    "mvtec_ad2": MvtecAd2,
    "visa": Visa,
    "btad": Btad,
}


@pytest.fixture(params=TREES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tree(name: str, tmp_path: Path) -> Path:
    return TREES[name][1](tmp_path / "tree")


def load(name: str, root: Path | str, where: Path, category: str = "") -> Dataset:
    return load_dataset(
        name,
        category or TREES[name][0],
        str(root),
        data_dir=str(where / "prepared"),
        image_size=(8, 8),
        validation_fraction=0.25,
        seed=0,
    )


def test_visa_is_read_in_the_layout_of_mvtec_ad(tmp_path: Path) -> None:
    write_mvtec_ad(tmp_path / "visa", "pcb1")
    dataset = load("visa", tmp_path / "visa", tmp_path, "pcb1")
    expected = load("folder", tmp_path / "visa", tmp_path, "pcb1")
    assert dataset.test.names == expected.test.names
    np.testing.assert_array_equal(dataset.test.images, expected.test.images)
    (tmp_path / "visa/pcb2").mkdir()
    with pytest.raises(InputError, match=r"1cls\.csv: no such file, .* pcb2/train and pcb2/test"):
        load("visa", tmp_path / "visa", tmp_path, "pcb2")


def test_a_copy_of_files_that_changed_replaces_the_earlier_one(tmp_path: Path) -> None:
    for folder in ("here", "elsewhere"):
        write_mvtec_ad(tmp_path / folder, "bottle")
    load("mvtec_ad", tmp_path / "elsewhere", tmp_path, "bottle")
    image = tmp_path / "here/bottle/train/good/000.png"
    for time in (1, 2, 3, 3):
        os.utime(image, (time, time))
        load("mvtec_ad", tmp_path / "here", tmp_path, "bottle")
        assert len(list((tmp_path / "prepared/mvtec_ad").iterdir())) == 2
    load("mvtec_ad", tmp_path / "elsewhere", tmp_path, "bottle")
    assert len(list((tmp_path / "prepared/mvtec_ad").iterdir())) == 2


def marked(path: Path) -> np.ndarray:
    with Image.open(path) as mask:
        return np.asarray(mask) > 0


def defects(split: ImageSet) -> dict[str, str]:
    return dict(zip(split.names, split.defects, strict=True))


def masks(split: ImageSet) -> dict[str, np.ndarray]:
    pairs = zip(split.names, split.masks, strict=True)
    return {name: mask for name, mask in pairs if mask is not None}


def assert_masks(split: ImageSet, expected: dict[str, Path]) -> None:
    loaded = masks(split)
    assert loaded.keys() == expected.keys()
    for name, path in expected.items():
        np.testing.assert_array_equal(loaded[name], marked(path))


def test_images_are_those_of_the_files(name: str, tree: Path, tmp_path: Path) -> None:
    category = TREES[name][0]
    for split in load(name, tree, tmp_path):
        for image, file, size in zip(split.images, split.names, split.sizes, strict=True):
            assert size == (HEIGHT, WIDTH)
            with Image.open(tree / category / file) as stored:
                resized = stored.resize((8, 8), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(image, np.asarray(resized))
        assert [defect != "good" for defect in split.defects] == (split.labels == 1).tolist()


def test_mvtec_ad(tmp_path: Path) -> None:
    tree = TREES["mvtec_ad"][1](tmp_path / "tree")
    train, validation, test = load("mvtec_ad", tree, tmp_path)
    assert sorted(train.names + validation.names) == [f"train/good/{i:03}.png" for i in range(4)]
    assert len(validation.names) == 1
    assert defects(test) == {
        "test/broken_large/000.png": "broken_large",
        "test/contamination/000.png": "contamination",
        "test/good/000.png": "good",
        "test/good/001.png": "good",
    }
    folder = tree / "bottle/ground_truth"
    assert_masks(
        test,
        {
            f"test/{kind}/000.png": folder / kind / "000_mask.png"
            for kind in ("broken_large", "contamination")
        },
    )
    assert train.regions is validation.regions is test.regions is None


def test_mvtec_loco(tmp_path: Path) -> None:
    tree = TREES["mvtec_loco"][1](tmp_path / "tree")
    train, validation, test = load("mvtec_loco", tree, tmp_path)
    assert train.names == [f"train/good/{i:03}.png" for i in range(3)]
    assert validation.names == [f"validation/good/{i:03}.png" for i in range(2)]
    assert defects(test) == {
        "test/good/000.png": "good",
        "test/logical_anomalies/000.png": "logical_anomalies",
        "test/logical_anomalies/001.png": "logical_anomalies",
        "test/structural_anomalies/000.png": "structural_anomalies",
    }
    folder = tree / "pushpins/ground_truth"
    two = [marked(folder / f"logical_anomalies/001/00{i}.png") for i in range(2)]
    np.testing.assert_array_equal(masks(test)["test/logical_anomalies/001.png"], two[0] | two[1])

    assert test.regions is not None
    areas = [[area for _, area in regions] for regions in test.regions]
    # 20 pixels saturate at 7; 20 and 3 at 7 and 3; half of 9 is rounded down, as officially.
    assert areas == [[], [7.0], [7.0, 3.0], [4.0]]
    for loaded, expected in zip(test.regions[2], two, strict=True):
        np.testing.assert_array_equal(loaded[0], expected)
    # The mask of a single defect is the image's mask, stored once.
    assert test.regions[1][0][0] is test.masks[1]
    assert train.regions == [[]] * 3
    assert validation.regions == [[]] * 2


def test_mvtec_ad2(tmp_path: Path) -> None:
    tree = TREES["mvtec_ad2"][1](tmp_path / "tree")
    train, validation, test = load("mvtec_ad2", tree, tmp_path)
    assert train.names == [f"train/good/{i:03}_regular.png" for i in range(3)]
    assert validation.names == [f"validation/good/{i:03}_regular.png" for i in range(2)]
    lights = ("overexposed", "regular", "shift_1")
    assert defects(test) == {
        f"test_public/{kind}/000_{light}.png": kind for kind in ("bad", "good") for light in lights
    }
    folder = tree / "vial/test_public/ground_truth/bad"
    assert_masks(
        test,
        {f"test_public/bad/000_{light}.png": folder / f"000_{light}_mask.png" for light in lights},
    )


def test_visa(tmp_path: Path) -> None:
    tree = TREES["visa"][1](tmp_path / "tree")
    train, validation, test = load("visa", tree, tmp_path)
    in_training = [f"Data/Images/Normal/{i:04}.JPG" for i in range(4)]
    assert sorted(train.names + validation.names) == in_training
    assert defects(test) == {
        "Data/Images/Anomaly/000.JPG": "anomaly",
        "Data/Images/Anomaly/001.JPG": "anomaly",
        "Data/Images/Normal/0004.JPG": "good",
    }
    folder = tree / "pcb1/Data/Masks/Anomaly"
    # The pixel values, 1 and 2, stand for kinds of defect.
    assert_masks(
        test, {f"Data/Images/Anomaly/{i:03}.JPG": folder / f"{i:03}.png" for i in range(2)}
    )
    assert all(mask.sum() == 20 for mask in masks(test).values())


@pytest.mark.parametrize("category", ["01", "02", "03"])
def test_btad(tmp_path: Path, category: str) -> None:
    tree = write_btad(tmp_path / "tree", category)
    train, validation, test = load("btad", tree, tmp_path, category)
    image = "png" if category == "02" else "bmp"
    in_training = [f"train/ok/{i:04}.{image}" for i in range(4)]
    assert sorted(train.names + validation.names) == in_training
    assert set(train.defects) == {"good"}
    assert defects(test) == {
        f"test/ko/0000.{image}": "ko",
        f"test/ko/0003.{image}": "ko",
        f"test/ok/0000.{image}": "good",
    }
    folder = tree / category / "ground_truth/ko"
    suffix = "bmp" if category == "03" else "png"
    assert_masks(
        test, {f"test/ko/{stem}.{image}": folder / f"{stem}.{suffix}" for stem in ("0000", "0003")}
    )


def pack(tree: Path, file: Path, below: str) -> Path:
    """Packs a tree into a folder of an archive, or at its top if `below` is empty."""
    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for path in sorted(tree.rglob("*")):
                archive.write(path, Path(below) / path.relative_to(tree))
    else:
        with tarfile.open(file, f"w:{file.suffix[1:].replace('tar', '')}") as archive:
            archive.add(tree, below or ".")
    return file


@pytest.mark.parametrize(
    ("name", "suffix", "below"),
    [
        ("mvtec_ad", ".tar.xz", ""),
        ("mvtec_loco", ".tar.xz", ""),
        ("mvtec_ad2", ".tar.gz", "mvtec_ad_2"),
        ("visa", ".tar", ""),
        ("btad", ".zip", "BTech_Dataset_transformed"),
    ],
    ids=TREES,
)
def test_published_archive_is_downloaded_once(
    suffix: str, below: str, tree: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = pack(tree, tmp_path / f"server/archive{suffix}", below)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    builder = BUILDERS[name]
    dataset = builder.dataset._replace(archive=Archive(file.as_uri(), digest, "page"))
    monkeypatch.setattr(builder, "dataset", dataset)
    expected = load(name, tree, tmp_path / "from the folder")

    downloaded = load(name, "", tmp_path)
    for a, b in zip(downloaded, expected, strict=True):
        assert a.names == b.names
        np.testing.assert_array_equal(a.images, b.images)
    prepared = tmp_path / "prepared"
    assert {path.name for path in prepared.iterdir()} == {"downloads", name}
    assert [path.name for path in (prepared / "downloads").iterdir()] == [name]
    file.unlink()
    assert load(name, "", tmp_path).test.names == expected.test.names


def test_archive_of_the_user_is_extracted(name: str, tree: Path, tmp_path: Path) -> None:
    archive = pack(tree, tmp_path / "mine/archive.tar.gz", "folder")
    loaded = load(name, archive, tmp_path)
    expected = load(name, tree, tmp_path / "from the folder")
    assert loaded.test.names == expected.test.names
    np.testing.assert_array_equal(loaded.test.images, expected.test.images)
    assert archive.is_file()


def test_an_archive_that_changes_is_extracted_once(tmp_path: Path) -> None:
    archive = pack(write_btad(tmp_path / "tree", "01"), tmp_path / "mine/archive.zip", "folder")
    other = shutil.copy(archive, tmp_path / "mine/other.zip")
    downloads = tmp_path / "prepared/downloads"
    for file in (other, archive, archive):
        os.utime(file, ns=(0, len(list(downloads.glob("*"))) + 1))
        load("btad", Path(file), tmp_path, "01")
    assert len([path for path in downloads.iterdir() if path.is_dir()]) == 2
    assert len(list(downloads.iterdir())) == 4


def test_changed_folder_is_prepared_again(name: str, tree: Path, tmp_path: Path) -> None:
    before = load(name, tree, tmp_path).test
    index = before.labels.tolist().index(1)
    write_image(tree / TREES[name][0] / before.names[index])
    after = load(name, tree, tmp_path).test
    assert not np.array_equal(before.images[index], after.images[index])


def test_changed_saturation_is_prepared_again(tmp_path: Path) -> None:
    tree = TREES["mvtec_loco"][1](tmp_path / "tree")
    load("mvtec_loco", tree, tmp_path)
    file = tree / "pushpins/defects_config.json"
    kinds = json.loads(file.read_text())
    kinds[0]["saturation_threshold"] = 5
    file.write_text(json.dumps(kinds))
    regions = load("mvtec_loco", tree, tmp_path).test.regions
    assert regions is not None
    assert regions[1][0][1] == 5


def test_unknown_category_lists_the_known_ones(name: str, tmp_path: Path) -> None:
    known = BUILDERS[name].dataset.categories
    assert (
        len(known) == {"mvtec_ad": 15, "mvtec_loco": 5, "mvtec_ad2": 8, "visa": 12, "btad": 3}[name]
    )
    with pytest.raises(InputError, match=f"'botle'.*of {name}, .*one of: {', '.join(known)}$"):
        load(name, tmp_path, tmp_path, "botle")


def test_missing_root_or_category_is_named(name: str, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such file or folder"):
        load(name, tmp_path / "nowhere", tmp_path)
    category = TREES[name][0]
    (tree / category).rename(tree / "renamed")
    with pytest.raises(InputError, match=rf"tree: no folder '{category}' in it, expected those of"):
        load(name, tree, tmp_path)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mvtec_ad", "bottle/train/good"),
        ("mvtec_ad", "bottle/test"),
        ("mvtec_loco", "pushpins/validation"),
        ("mvtec_loco", "pushpins/ground_truth"),
        ("mvtec_loco", "pushpins/test"),
        ("mvtec_ad2", "vial/validation/good"),
        ("mvtec_ad2", "vial/test_public"),
        ("visa", "split_csv"),
        ("btad", "01/train/ok"),
        ("btad", "01/test"),
    ],
)
def test_missing_folder_is_named(name: str, folder: str, tree: Path, tmp_path: Path) -> None:
    (tree / folder).rename(tree / "renamed")
    with pytest.raises(InputError, match=rf"{folder}.*: no such f(ile|older)"):
        load(name, tree, tmp_path)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(
    ("name", "mask", "image"),
    [
        ("mvtec_ad", "bottle/ground_truth/contamination/000_mask.png", "contamination/000.png"),
        ("mvtec_loco", "pushpins/ground_truth/logical_anomalies/000/000.png", "anomalies/000.png"),
        ("mvtec_ad2", "vial/test_public/ground_truth/bad/000_shift_1_mask.png", "000_shift_1.png"),
        ("btad", "01/ground_truth/ko/0003.png", "ko/0003.bmp"),
    ],
)
def test_missing_mask_is_named(
    name: str, mask: str, image: str, tree: Path, tmp_path: Path
) -> None:
    (tree / mask).unlink()
    with pytest.raises(InputError, match=rf"{image}: has no mask, .* copy is incomplete"):
        load(name, tree, tmp_path)
    assert not (tmp_path / "prepared").exists()


def test_loco_mask_without_image_is_refused(tmp_path: Path) -> None:
    tree = TREES["mvtec_loco"][1](tmp_path / "tree")
    stray = write_mask(tree / "pushpins/ground_truth/logical_anomalies/007/000.png")
    with pytest.raises(InputError, match=rf"mask {stray}: belongs to no image"):
        load("mvtec_loco", tree, tmp_path)


@pytest.mark.parametrize("values", [[], [7], [240, 255]], ids=["empty", "unknown", "two"])
def test_loco_mask_of_no_known_kind_is_refused(tmp_path: Path, values: list[int]) -> None:
    tree = TREES["mvtec_loco"][1](tmp_path / "tree")
    file = tree / "pushpins/ground_truth/structural_anomalies/000/000.png"
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for i, value in enumerate(values):
        mask[i, :3] = value
    Image.fromarray(mask).save(file)
    with pytest.raises(InputError, match=rf"mask {file}: marks defects by .* values 240, 255 of"):
        load("mvtec_loco", tree, tmp_path)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("{}", "not a list"),
        ('[{"pixel_value": 255}]', "lacks a"),
        (
            '[{"pixel_value": 255, "saturation_threshold": 7, "relative_saturation": true}]',
            "out of range",
        ),
    ],
)
def test_loco_needs_its_saturations(tmp_path: Path, text: str | None, complaint: str) -> None:
    tree = TREES["mvtec_loco"][1](tmp_path / "tree")
    file = tree / "pushpins/defects_config.json"
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises(InputError, match=rf"{file}: .*{complaint}") as caught:
        load("mvtec_loco", tree, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("object,split", "kind,split", "columns .*, expected object, split"),
        ("pcb1,test,anomaly", "pcb1,val,anomaly", "line 7 has split 'val'"),
        ("pcb1,test", "pcb1,train", "6 training and 0 test|0 test images"),
        ("Anomaly/001.JPG,", "Anomaly/009.JPG,", "009.JPG: no such file, although"),
        ("Masks/Anomaly/001.png", "Masks/Anomaly/009.png", "009.png: no such file, although"),
        (",pcb1/Data/Masks/Anomaly/001.png", ",", "001.JPG: has no mask"),
    ],
)
def test_visa_table_is_checked(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    tree = TREES["visa"][1](tmp_path / "tree")
    table = tree / "split_csv/1cls.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=complaint):
        load("visa", tree, tmp_path)


def test_configuration_names_its_dataset(name: str, tree: Path, tmp_path: Path) -> None:
    given = paper.get_config(f"{name},{TREES[name][0]}")
    given.dataset.root = str(tree)
    given.dataset.data_dir = str(tmp_path / "prepared")
    config = read_config(given)
    assert (config.dataset.name, config.category) == (name, TREES[name][0])
    assert config.train.steps == 70_000
    dataset = load_configured_dataset(config)
    assert dataset.test.images.shape[1:] == (256, 256, 3)


def test_the_given_category_of_several_is_loaded(tmp_path: Path) -> None:
    tree = write_mvtec_ad(write_mvtec_ad(tmp_path / "tree"), "cable")
    bottle, cable = (load("mvtec_ad", tree, tmp_path, category) for category in ("bottle", "cable"))
    assert bottle.test.names == cable.test.names
    assert not np.array_equal(bottle.test.images, cable.test.images)
