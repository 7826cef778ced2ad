"""Every writer on a full and on a read-only disk: it fails clearly and keeps earlier files."""

import gc
import os
import subprocess
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from efficientad_jax import Detector, InputError
from efficientad_jax.config import Config
from efficientad_jax.data.datasets.archive import Archive, extract
from efficientad_jax.data.decoding import decode_image
from efficientad_jax.data.loading import load_dataset
from efficientad_jax.detection import detector as detector_module
from efficientad_jax.detection.heatmap import Task
from efficientad_jax.detection.predict_files import predict_files
from efficientad_jax.networks.teacher import Teacher, load_teacher, save_teacher
from efficientad_jax.runs.checkpoints import open_checkpoints
from efficientad_jax.runs.tensorboard import scalar_log
from efficientad_jax.runs.workdir import claim_workdir
from efficientad_jax.storage.atomic import write_atomically
from tests.helpers.dataset_trees import write_mvtec_ad
from tests.helpers.detectors import random_detector, random_params

RNG = np.random.default_rng(0)


class Disk:
    """A small file system of its own, which can be made full or read-only."""

    def __init__(self, folder, how):
        self.folder, self.how = folder, how

    def close(self):
        """From here on nothing can be written."""
        if self.how == "full":
            with (self.folder / "filler").open("wb", buffering=0) as file:
                for size in (1 << 16, 1 << 12, 1):
                    try:
                        while file.write(bytes(size)):
                            pass
                    except OSError:
                        continue
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)

    def listing(self):
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*"))


@pytest.fixture(params=["full", "read-only"])
def disk(request, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        result = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs a small file system: there is no command `mount`")
    if result.returncode:
        pytest.skip(f"needs a small file system, and may not mount one: {result.stderr.strip()}")
    yield Disk(folder, request.param)
    subprocess.run(["umount", str(folder)], check=True)


REASON = r"No space left on device|Read-only file system"


def assert_refused(write, disk, name, error=OSError):
    """A write fails with an error that names the file or folder, and leaves nothing."""
    before = disk.listing()
    with pytest.raises(error) as caught:
        write()
    if error is OSError:
        assert str(name) in str(caught.value.filename)
        assert caught.value.strerror in REASON.split("|")
    else:
        assert str(name) in str(caught.value)
        assert str(caught.value).isprintable()
    assert disk.listing() == before


def test_a_file(disk):
    file = disk.folder / "scores.csv"
    write_atomically(file, b"before")
    disk.close()
    assert_refused(lambda: write_atomically(file, bytes(9000)), disk, file)
    assert file.read_bytes() == b"before"


def test_a_workdir(disk):
    disk.close()
    workdir = disk.folder / "run"
    with pytest.raises(InputError, match=rf"workdir {workdir}: cannot be made \(({REASON})\)"):
        claim_workdir(workdir, Config())


@pytest.mark.slow
def test_a_detector(disk):
    folder, saved = disk.folder / "detector", random_detector()
    saved.save(folder)
    disk.close()
    assert_refused(lambda: random_detector(seed=1).save(folder), disk, folder)
    measured = saved.with_metrics({"figures": "x" * 9000})
    assert_refused(lambda: measured.save_record(folder), disk, folder)
    found = Detector.load(folder)
    assert found.metrics == {}
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(saved.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_teacher(disk):
    file = disk.folder / "teacher.safetensors"
    from efficientad_jax.networks.pdn import PatchDescriptionNetwork

    params = random_params(PatchDescriptionNetwork("small", 2), (64, 64))
    save_teacher(file, Teacher("small", 2, params, {"n": 1}))
    disk.close()
    again = Teacher("small", 2, params, {"n": 2})
    assert_refused(lambda: save_teacher(file, again, np.float32), disk, file)
    assert load_teacher(file).record == {"n": 1}


# The threads of orbax that could not write leave their exceptions behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_checkpoints(disk):
    def state(value):
        noise = np.random.default_rng(value).standard_normal((600, 500)).astype(np.float32)
        return {"a": noise, "step": jnp.int32(value)}

    folder = disk.folder / "checkpoints"
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(1, state(1), 0.5)
    disk.close()

    def save_another():
        with open_checkpoints(folder) as checkpoints:
            checkpoints.save(2, state(2), 0.5)

    with pytest.raises(InputError, match=f"checkpoints {folder}: cannot be written") as caught:
        save_another()
    assert str(caught.value).isprintable()
    if disk.how == "full":
        (disk.folder / "filler").unlink()
    else:
        subprocess.run(["mount", "-o", "remount,rw", str(disk.folder)], check=True)
    with open_checkpoints(folder) as checkpoints:
        found = checkpoints.restore_latest(state(0))
    assert found["step"] == 1
    np.testing.assert_array_equal(found["a"], state(1)["a"])
    gc.collect()  # of those exceptions, which a later test would be blamed for


def test_tensorboard_files(disk):
    folder = disk.folder / "tensorboard"
    if disk.how == "read-only":
        disk.close()
        with pytest.raises(OSError, match="Read-only") as caught, scalar_log(folder):
            pass
        assert str(folder) in caught.value.filename
        return

    def write_on():
        with scalar_log(folder) as write:
            write({"loss": 1.0}, 1)
            disk.close()
            for step in range(2, 1000):
                write({"loss": 1.0}, step)

    with pytest.raises(OSError, match="No space left") as caught:
        write_on()
    assert str(folder) in caught.value.filename


def test_a_prepared_dataset(disk, tmp_path):
    root = write_mvtec_ad(tmp_path / "data")
    disk.close()
    prepared = disk.folder / "prepared"
    before = disk.listing()
    with pytest.raises(InputError, match="cannot be written") as caught:
        load_dataset(
            "mvtec_ad",
            "bottle",
            str(root),
            data_dir=str(prepared),
            image_size=(32, 32),
            validation_fraction=0.3,
            seed=0,
        )
    assert str(prepared) in str(caught.value)
    assert disk.listing() == before


def test_an_extracted_archive(disk, tmp_path):
    (tmp_path / "large.bin").write_bytes(RNG.bytes(1 << 20))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "large.bin", "bottle/large.bin")
    disk.close()
    before = disk.listing()
    with pytest.raises(OSError, match=REASON):
        extract(tmp_path / "a.tar", Archive("http://x/b.tar", "0" * 64, ""), disk.folder / "d/e")
    assert disk.listing() == before


@pytest.mark.slow
def test_scores_that_are_there_when_the_disk_becomes_full_stay(disk, tmp_path, monkeypatch):
    image, scores = tmp_path / "a.png", disk.folder / "scores.csv"
    Image.fromarray(RNG.integers(0, 256, (90, 80, 3), np.uint8)).save(image)
    decoded = []

    def decode(source, *rest, **options):
        decoded.append(source)
        if len(decoded) == 9:  # eight are scored at a time
            disk.close()
        return decode_image(source, *rest, **options)

    monkeypatch.setattr(detector_module, "decode_image", decode)
    # More lines than fit into what is left of a block of 4,096 bytes on the full disk.
    tasks = [Task(image, None)] * 96
    with pytest.raises(OSError, match=REASON) as caught:
        predict_files(random_detector(), tasks, scores, low=0.0, high=1.0, complain=print)
    assert caught.value.filename == str(scores)
    lines = scores.read_text().splitlines(keepends=True)
    assert len(lines) in range(9, 96, 8)
    assert len(set(lines)) == 2
    assert lines[-1].endswith("\n")


@pytest.mark.slow
def test_pictures_and_scores(disk, tmp_path):
    image, scores = tmp_path / "a.png", disk.folder / "scores.csv"
    Image.fromarray(RNG.integers(0, 256, (90, 80, 3), np.uint8)).save(image)
    scores.write_text("before")
    disk.close()
    lines = []
    elsewhere = [Task(image, tmp_path / f"a{i}_heatmap.png") for i in range(2)]
    here = [Task(image, disk.folder / "a_heatmap.png")]

    detector = random_detector()

    def predict(tasks):
        predict_files(detector, tasks, scores, low=0.0, high=1.0, complain=lines.append)

    assert_refused(lambda: predict(here), disk, "a_heatmap.png")
    assert_refused(lambda: predict(elsewhere), disk, scores)
    assert scores.read_text() == "before"
    assert not lines
    assert os.path.exists(elsewhere[-1].picture)
