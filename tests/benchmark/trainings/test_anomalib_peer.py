"""anomalib's process gets our images and teacher; where it fails, one line says why."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientad_jax.benchmark.trainings import own_training
from efficientad_jax.benchmark.trainings.anomalib_peer import (
    anomalib_version,
    run_task,
    train_anomalib,
    write_inputs,
)
from efficientad_jax.config import Config, replace
from efficientad_jax.data.loading import Dataset, ImageSet
from efficientad_jax.errors import InputError, StoppedError
from efficientad_jax.networks.teacher import load_teacher
from tests.helpers.command import command
from tests.helpers.images import uint8_images, write_image

SIDE = 256


def images(count, seed):
    return ImageSet(
        uint8_images(count, (SIDE, SIDE), seed),
        np.zeros(count, np.int64),
        [f"{seed}/{number}.png" for number in range(count)],
        ["good"] * count,
        [None] * count,
        [(300, 200)] * count,
    )


@pytest.fixture(scope="module")
def dataset():
    return Dataset(images(3, 0), images(1, 1), images(2, 2))


@pytest.fixture(scope="module")
def python():
    """The interpreter with anomalib that EFFICIENTAD_ANOMALIB names."""
    given = os.environ.get("EFFICIENTAD_ANOMALIB")
    if not given:
        pytest.skip("needs anomalib: set EFFICIENTAD_ANOMALIB to a Python that has it")
    try:
        anomalib_version(given)
    except InputError as error:
        pytest.skip(f"needs anomalib: EFFICIENTAD_ANOMALIB={given}: {error}")
    return given


def interpreter(folder: Path, script: str) -> str:
    """A program in the place of a Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_without_anomalib_is_refused_in_one_line(tmp_path):
    python = interpreter(tmp_path, "echo 'Traceback' >&2; echo 'No module anomalib' >&2; exit 1")
    with pytest.raises(InputError) as caught:
        anomalib_version(python)
    message = str(caught.value)
    assert message.startswith(f"--anomalib_python={python}: cannot import anomalib (No module")
    assert "ENV/bin/pip install 'anomalib==2.7.*'" in message
    assert "\n" not in message


def test_a_python_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none: cannot be started \(No such file .*pip install"):
        anomalib_version(str(tmp_path / "none"))


@pytest.mark.slow
def test_the_command_ends_with_one_line_without_anomalib(tmp_path):
    output = tmp_path / "output"
    python = interpreter(tmp_path, "echo 'No module named anomalib' >&2; exit 1")
    result = command(
        "benchmark_anomalib",
        "--config=configs/paper.py",
        "--steps=1",
        f"--anomalib_python={python}",
        f"--output={output}",
    )
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: --anomalib_python={python}: cannot import anomalib (No module")
    assert not output.exists()


def test_the_version_is_that_of_the_python_without_our_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    python = interpreter(tmp_path, 'echo "a warning"; echo "2.7.0$PYTHONPATH"')
    assert anomalib_version(python) == "2.7.0"


def test_a_process_that_fails_is_reported_with_its_last_line(tmp_path):
    python = interpreter(tmp_path, "echo first; echo 'it is full' >&2; exit 3")
    log = tmp_path / "anomalib.log"
    with pytest.raises(InputError, match=r"status 3, expected 0; .*\.log has .* is: it is full$"):
        run_task(python, {}, log)
    assert log.read_text() == "first\nit is full\n"


def test_photographs_are_required(tmp_path, dataset):
    with pytest.raises(InputError, match=r"config\.pretraining_images is empty: .*photographs"):
        train_anomalib(sys.executable, Config(), dataset, minutes=0.0, result=tmp_path / "a.npz")


@pytest.mark.slow
def test_images_and_teacher_are_written_as_our_networks_see_them(tmp_path, dataset):
    teacher = load_teacher("", "small")
    paths = write_inputs(tmp_path, dataset, teacher)
    for split, part in zip(Dataset._fields, dataset, strict=True):
        files = sorted((Path(paths["images"]) / split).iterdir())
        pixels = np.stack([np.asarray(Image.open(file)) for file in files])
        np.testing.assert_array_equal(pixels, part.images)
    features = np.load(paths["teacher_features"])
    assert features.shape == (1, 56, 56, teacher.out_channels)
    assert features.std() > 0


@pytest.mark.slow
def test_a_few_steps_of_anomalib_have_our_teacher(tmp_path, python, dataset):
    for name in ("a", "b"):
        write_image(tmp_path / "photographs" / f"{name}.png")
    changes = {"train.steps": 2, "pretraining_images": str(tmp_path / "photographs")}
    config = replace(Config(), changes)
    measured = train_anomalib(python, config, dataset, minutes=0.0, result=tmp_path / "a.npz")
    assert measured.facts["teacher_difference"] <= 1e-4
    assert measured.steps == 2
    assert measured.training_seconds > 0
    assert measured.maps.shape == (2, SIDE, SIDE)
    # The score is the maximum, and the maps are not clipped.
    np.testing.assert_allclose(measured.scores, measured.maps.max(axis=(1, 2)), rtol=1e-6)
    assert measured.maps.min() < 0


@pytest.mark.slow
def test_anomalib_with_another_teacher_is_refused(tmp_path, python, dataset):
    paths = write_inputs(tmp_path, dataset, load_teacher("", "small"))
    features = np.load(paths["teacher_features"])
    np.save(paths["teacher_features"], features + 2e-3 * features.max())
    task = {
        **paths,
        "photographs": str(tmp_path),
        "photograph_count": 0,
        "size": "small",
        "channels": 384,
        "image_size": [SIDE, SIDE],
        "seed": 0,
        "steps": 1,
        "minutes": 0.0,
        "result": str(tmp_path / "a.npz"),
    }
    with pytest.raises(InputError, match=r"ValueError: teacher: its features .* differ by 0\.00"):
        run_task(python, task, tmp_path / "log")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_our_training_passes_a_signal_on(monkeypatch, dataset, number):
    def stopped(*args, **kwargs):
        raise StoppedError(number, 5)

    received = []
    monkeypatch.setattr(own_training, "fit_detector", stopped)
    before = signal.signal(number, lambda *args: received.append(args[0]))
    try:
        with pytest.raises(StoppedError):
            own_training.train_own(Config(), dataset)
    finally:
        signal.signal(number, before)
    assert received == [number]
