import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientad_jax.data.loading import Dataset, load_dataset
from efficientad_jax.errors import InputError

pytestmark = pytest.mark.slow

CATEGORIES = ["mono", "poly"]


@pytest.fixture(scope="module")
def package_data() -> Path:
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package elpv-dataset: pip install 'efficientad-jax[quickstart]'")
    return Path(spec.origin).parent / "data"


@pytest.fixture(scope="module", params=CATEGORIES)
def category(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def dataset(category: str, package_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    where = str(tmp_path_factory.mktemp(category))
    return load_dataset(
        "elpv", category, "", data_dir=where, image_size=(10, 10), validation_fraction=0.1, seed=0
    )


def cells(package_data: Path, category: str, probability: float) -> set[str]:
    """File names of the cells of a kind with a defect probability."""
    with (package_data / "labels.csv").open(newline="") as file:
        rows = csv.reader(file, delimiter=" ", skipinitialspace=True)
        labels = [[value for value in row if value] for row in rows]
    return {
        Path(path).name
        for path, value, kind in labels
        if float(value) == probability and kind == category
    }


def file_names(names: list[str]) -> set[str]:
    return {Path(name).name for name in names}


# One test per category, because each process that needs the dataset prepares it again.
def test_cells_are_split_as_documented(dataset: Dataset, category: str, package_data: Path) -> None:
    train, validation, test = dataset
    functional = cells(package_data, category, 0)
    defective = cells(package_data, category, 1)
    assert functional
    assert defective

    for split in dataset:
        assert len(file_names(split.names)) == len(split.names)
    in_training = file_names(train.names + validation.names)
    good_in_test = {
        Path(name).name for name, label in zip(test.names, test.labels, strict=True) if label == 0
    }
    bad_in_test = file_names(test.names) - good_in_test

    # Training and test images are the functional cells, each once; all defective ones are in test.
    assert not in_training & good_in_test
    assert in_training | good_in_test == functional
    assert bad_in_test == defective
    assert len(good_in_test) == round(0.2 * len(functional))
    assert not file_names(train.names) & file_names(validation.names)
    assert len(validation.names) == round(0.1 * len(in_training))

    assert not train.labels.any()
    assert not validation.labels.any()
    assert set(train.defects) == set(validation.defects) == {"good"}
    assert [defect != "good" for defect in test.defects] == (test.labels == 1).tolist()
    assert set(test.masks) == {None}
    assert set(train.sizes) == {(300, 300)}

    # The documented permutation.
    ordered = sorted(functional)
    order = np.random.default_rng(0).permutation(len(ordered))
    assert good_in_test == {ordered[i] for i in order[: len(good_in_test)]}

    # Images belong to their names.
    for i in (0, len(test.names) // 2, len(test.names) - 1):
        with Image.open(package_data / "images" / Path(test.names[i]).name) as image:
            gray = np.asarray(image.resize((10, 10), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(test.images[i], np.stack([gray] * 3, axis=-1))


def test_missing_package_is_named_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "elpv_dataset" else find_spec(name, *rest),
    )
    with pytest.raises(InputError, match=r"pip install 'efficientad-jax\[quickstart\]'"):
        load_dataset(
            "elpv",
            "mono",
            "",
            data_dir=str(tmp_path / "prepared"),
            image_size=(8, 8),
            validation_fraction=0.1,
            seed=0,
        )
    assert not (tmp_path / "prepared").exists()
