"""Photographs of a folder and of tensorflow-datasets, and the views made from them."""

import pickle
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from efficientad_jax.distillation.photographs import open_photographs, read_photograph
from efficientad_jax.distillation.views import ViewRecipe, view_batches
from efficientad_jax.errors import InputError

RECIPE = ViewRecipe((0, 1), 0.25, 0.5, 0.5, 64)


@pytest.fixture
def folder(tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = rng.integers(0, 256, (30 + i, 40, 3), np.uint8)
        Image.fromarray(pixels).save(photographs / f"{i}.png")
    return photographs


class TinyPhotographs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset with an image and another feature; registered only while a test runs."""

    name = "tiny_photographs"
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = tfds.core.Path(__file__).parent
    folder = None
    features: ClassVar = {"image": tfds.features.Image(), "place": tfds.features.Text()}

    def _info(self):
        features = tfds.features.FeaturesDict(self.features)
        return self.dataset_info_from_configs(features=features, license="CC0")

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for path in sorted(self.folder.iterdir()):
            yield path.name, {"image": str(path), "place": "here"}


@pytest.fixture
def registered(folder, monkeypatch):
    monkeypatch.setattr(TinyPhotographs, "folder", folder)
    monkeypatch.setitem(
        tfds.core.registered._DATASET_REGISTRY, TinyPhotographs.name, TinyPhotographs
    )


@pytest.mark.slow
def test_a_dataset_is_prepared_and_read_without_tensorflow(registered, folder, tmp_path):
    photographs = open_photographs("tfds:tiny_photographs", str(tmp_path / "tfds"))
    assert photographs.name == "tfds:tiny_photographs/1.0.0"
    assert photographs.license == "CC0"
    prepared = tmp_path / "tfds/tiny_photographs/1.0.0"
    assert list(prepared.glob("*.array_record*"))
    # Another process can read the prepared dataset, even if its name is not registered there.
    photographs = pickle.loads(pickle.dumps(photographs))
    images = [read_photograph(photographs, i) for i in range(len(photographs.records))]
    files = open_photographs(str(folder))
    assert files.license == ""
    expected = [read_photograph(files, i) for i in range(5)]
    # tensorflow-datasets writes examples in another order.
    for image in images:
        assert sum(np.array_equal(image, other) for other in expected) == 1
    assert len(images) == 5


@pytest.mark.slow
def test_a_prepared_dataset_can_be_read_without_its_builder(registered, tmp_path, monkeypatch):
    data_dir = str(tmp_path / "tfds")
    open_photographs("tfds:tiny_photographs", data_dir)
    monkeypatch.delitem(tfds.core.registered._DATASET_REGISTRY, TinyPhotographs.name)
    assert len(open_photographs("tfds:tiny_photographs", data_dir).records) == 5


@pytest.mark.slow
def test_datasets_that_cannot_be_used_are_named_in_one_line(registered, tmp_path, monkeypatch):
    def refused(images):
        with pytest.raises(InputError) as info:
            open_photographs(images, str(tmp_path / "tfds"))
        assert "\n" not in str(info.value)
        assert f"config.images = {images!r}" in str(info.value)
        return str(info.value)

    assert "tensorflow-datasets cannot open it" in refused("tfds:no_such_dataset")
    monkeypatch.setattr(TinyPhotographs, "_split_generators", lambda *_: 1 / 0)
    assert "cannot be prepared in" in refused("tfds:tiny_photographs")
    monkeypatch.setattr(TinyPhotographs, "features", {"place": tfds.features.Text()})
    assert "no feature 'image'" in refused("tfds:tiny_photographs")
    with pytest.raises(InputError, match="no such folder"):
        open_photographs(str(tmp_path / "none"))


def make_views(photographs, ids, workers, order=(3, 0, 4, 1)):
    ids = np.array(ids)
    return list(view_batches(photographs, np.array(order), RECIPE, ids=ids, workers=workers))


@pytest.mark.slow
def test_views_do_not_depend_on_what_makes_them(folder):
    photographs = open_photographs(str(folder))
    ids = np.arange(12).reshape(4, 3)
    by_threads = make_views(photographs, ids, 0)
    by_processes = make_views(photographs, ids, 2)
    one_by_one = make_views(photographs, ids.reshape(12, 1), 0)
    late = make_views(photographs, ids[2:], 0)
    assert [batch.ids.tolist() for batch in by_threads] == ids.tolist()
    assert by_threads[0].large.shape == (3, 64, 64, 3)
    assert by_threads[0].small.shape == (3, 256, 256, 3)
    for name in ("large", "small"):
        views = np.concatenate([getattr(batch, name) for batch in by_threads])
        for other, first in ((by_processes, 0), (one_by_one, 0), (late, 6)):
            same = np.concatenate([getattr(batch, name) for batch in other])
            np.testing.assert_array_equal(same, views[first:])
    # Four photographs are seen in turn, as another view each time.
    assert not np.array_equal(by_threads[0].large[0], by_threads[1].large[1])


def test_a_whole_view_is_the_photograph_resized(folder):
    photographs = open_photographs(str(folder))
    whole = RECIPE._replace(smallest_area=1.0, smallest_contrast=1.0, grayscale_probability=0.0)
    (batch,) = view_batches(photographs, np.arange(5), whole, ids=np.array([[2, 4]]), workers=0)
    for i, view in zip((2, 4), batch.small, strict=True):
        image = Image.fromarray(read_photograph(photographs, i))
        resized = np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(view, resized)
    gray = whole._replace(grayscale_probability=1.0)
    (batch,) = view_batches(photographs, np.arange(5), gray, ids=np.array([[0]]), workers=0)
    assert np.ptp(batch.small.astype(int), axis=-1).max() == 0


def test_the_contrast_of_views_is_scaled_within_the_range_of_brightness(folder):
    photographs = open_photographs(str(folder))
    whole = RECIPE._replace(smallest_area=1.0, smallest_contrast=1.0, grayscale_probability=0.0)
    ids = np.arange(60)[None]
    (plain,) = view_batches(photographs, np.arange(5), whole, ids=ids, workers=0)
    (scaled,) = view_batches(
        photographs, np.arange(5), whole._replace(smallest_contrast=0.1), ids=ids, workers=0
    )
    for name in ("small", "large"):
        kept, darkest = [], []
        for before, after in zip(getattr(plain, name), getattr(scaled, name), strict=True):
            slope, offset = np.polyfit(before.ravel().astype(float), after.ravel(), 1)
            # Each of the two resizings rounds twice, and the scaling rounds once.
            assert np.abs(slope * before.astype(float) + offset - after).max() < 2.5
            kept.append(slope)
            darkest.append(offset)
        assert min(kept) > 0.09
        assert max(kept) < 1.01
        # Uniform in the logarithm: the median of a factor from 0.1 to 1 is 0.32.
        assert 0.2 < np.median(kept) < 0.5
        assert min(darkest) > -1
        assert max(np.add(darkest, np.multiply(kept, 255))) < 256
        assert np.ptp(darkest) > 100


@pytest.mark.slow
def test_a_photograph_that_cannot_be_read_is_named(folder):
    (folder / "3.png").write_bytes(b"not an image")
    photographs = open_photographs(str(folder))
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"3\.png: not an image"):
            make_views(photographs, [[0, 1]], workers)
