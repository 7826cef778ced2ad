"""The copies that tensorflow-datasets makes of published datasets, here of MVTec AD."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from efficientad_jax.data.decoding import decode_image_and_peak
from efficientad_jax.data.loading import Dataset, load_dataset
from efficientad_jax.data.prepare import write_dataset
from efficientad_jax.errors import InputError
from tests.helpers.dataset_trees import write_mvtec_ad
from tests.helpers.images import write_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_mvtec_ad(tmp_path / "tree")


def load(root: Path, data_dir: str = "prepared", image_size: tuple[int, int] = (8, 8)) -> Dataset:
    return load_dataset(
        "mvtec_ad",
        "bottle",
        str(root),
        data_dir=str(root.parent / data_dir),
        image_size=image_size,
        validation_fraction=0.25,
        seed=0,
    )


def train_count(dataset: Dataset) -> int:
    return len(dataset.train.names + dataset.validation.names)


def prepared_copies(root: Path) -> set[Path]:
    return set((root.parent / "prepared").glob("mvtec_ad/*/*"))


def test_one_copy_serves_every_size(root: Path) -> None:
    assert load(root).test.images.shape == (4, 8, 8, 3)
    assert load(root, image_size=(20, 16)).test.images.shape == (4, 20, 16, 3)
    assert len(prepared_copies(root)) == 1


@pytest.mark.slow
def test_default_folder_is_that_of_tensorflow_datasets(root: Path) -> None:
    home = root.parent / "home"
    code = (
        "from efficientad_jax.data.loading import load_dataset\n"
        f"load_dataset('mvtec_ad', 'bottle', {str(root)!r}, data_dir='', image_size=(8, 8),\n"
        "             validation_fraction=0.2, seed=0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(home), "PATH": "", "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert len(list((home / "tensorflow_datasets/mvtec_ad").glob("bottle-*/*"))) == 1


@pytest.mark.parametrize("damage", ["cut off", "no image", "empty"])
def test_broken_file_is_named_and_no_copy_is_left(root: Path, damage: str) -> None:
    load(root)
    before = sorted((root.parent / "prepared").rglob("*"))
    path = root / "bottle/test/good/001.png"
    content = {"cut off": path.read_bytes()[:60], "no image": b"text", "empty": b""}[damage]
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"image {path}: ") as caught:
        load(root)
    assert "\n" not in str(caught.value)
    assert sorted((root.parent / "prepared").rglob("*")) == before


def test_interruption_leaves_no_copy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(root)
    before = sorted((root.parent / "prepared").rglob("*"))
    write_image(root / "bottle/train/good/004.png")

    def interrupt(*_, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("efficientad_jax.data.examples.decode_image_and_peak", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(root)
    assert sorted((root.parent / "prepared").rglob("*")) == before
    assert train_count(load(root)) == 5


def test_failure_leaves_no_new_folder(root: Path) -> None:
    (root / "bottle/train/good/000.png").write_bytes(b"text")
    with pytest.raises(InputError, match="not an image"):
        load(root, "new/prepared")
    assert not (root.parent / "new").exists()


def test_writing_prints_nothing(
    root: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    load(root)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


def test_copy_finished_by_another_process_in_the_meantime_is_used(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = [root]

    def decode_after_the_other(source: Path, **options: int) -> tuple[np.ndarray, int | None]:
        if pending:
            load(pending.pop())
        return decode_image_and_peak(source, **options)

    monkeypatch.setattr(
        "efficientad_jax.data.examples.decode_image_and_peak", decode_after_the_other
    )
    dataset = load(root)
    assert train_count(dataset) == 4
    assert len(dataset.test.names) == 4
    (copy,) = prepared_copies(root)
    assert sorted(copy.parent.iterdir()) == [copy]


def test_copy_finished_by_another_process_before_writing_is_used(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = [root]

    def write_after_the_other(builder: tfds.core.DatasetBuilder, source: str) -> None:
        if pending:
            load(pending.pop())
        write_dataset(builder, source)

    monkeypatch.setattr("efficientad_jax.data.prepare.write_dataset", write_after_the_other)
    assert train_count(load(root)) == 4
    assert not pending


def test_unchanged_folder_is_copied_once(root: Path) -> None:
    load(root)
    copies = prepared_copies(root)
    assert len(copies) == 1
    times = {path: path.stat().st_mtime_ns for copy in copies for path in copy.iterdir()}
    load(root)
    assert prepared_copies(root) == copies
    assert {path: path.stat().st_mtime_ns for copy in copies for path in copy.iterdir()} == times


def test_folders_of_the_same_name_have_their_own_copies(root: Path) -> None:
    other = root.parent / "other" / root.name
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        copy = other / path.relative_to(root)
        if path.suffix == ".png" and "ground_truth" not in path.parts:
            write_image(copy)
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        status = path.stat()
        os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    first = load(root)
    second = load(other, "../prepared")
    assert len(prepared_copies(root)) == 2
    assert not np.array_equal(first.test.images, second.test.images)


def test_folder_that_cannot_be_written_is_named(root: Path) -> None:
    (root.parent / "prepared").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"prepared.*cannot be written"):
        load(root)
