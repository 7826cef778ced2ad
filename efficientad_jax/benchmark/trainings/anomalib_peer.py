"""Trains anomalib's EfficientAd in a process of its own, whose Python may be another one."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from efficientad_jax.benchmark.trainings.measured import MeasuredTraining, read_measured
from efficientad_jax.config import Config
from efficientad_jax.data.files import list_images
from efficientad_jax.data.loading import Dataset
from efficientad_jax.errors import InputError
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.networks.teacher import Teacher, load_teacher
from efficientad_jax.networks.torch_teacher import torch_state_dict

_SCRIPT = Path(__file__).with_name("anomalib_process.py")
_VERSION = "import importlib.metadata, anomalib; print(importlib.metadata.version('anomalib'))"
_INSTALL = (
    "python3 -m venv ENV && ENV/bin/pip install 'anomalib==2.7.*', then give "
    "--anomalib_python=ENV/bin/python"
)


def anomalib_version(python: str) -> str:
    """The version of the anomalib that a Python imports.

    Args:
      python: path of the interpreter.

    Raises:
      InputError: there is no such interpreter, or it cannot import anomalib.
    """
    subject = f"--anomalib_python={python}"
    try:
        result = _run([python, "-c", _VERSION], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise InputError(f"{subject}: cannot be started ({error.strerror}); {_INSTALL}") from error
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"status {result.returncode}"]
        raise InputError(f"{subject}: cannot import anomalib ({lines[-1]}); {_INSTALL}")
    return result.stdout.split()[-1]


def train_anomalib(
    python: str, config: Config, dataset: Dataset, *, minutes: float, result: Path
) -> MeasuredTraining:
    """Trains anomalib's EfficientAd and computes its scores and maps of the test images.

    Args:
      python: path of an interpreter that has anomalib.
      config: of our training. Its seed, teacher, size of the networks and photographs are used, and
        its number of steps if `minutes` is 0.
      dataset: its images, at 256x256 pixels.
      minutes: time for the steps; 0 for `config.train.steps`.
      result: the file of the result. The output of the process is written to the same name with the
        suffix .log.

    Raises:
      InputError: the photographs cannot be used, or the training failed.
      OSError: a file cannot be written.
    """
    teacher = load_teacher(config.teacher, config.model.size)
    log = result.with_suffix(".log")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = {
            **write_inputs(folder, dataset, teacher),
            **_link_photographs(folder / "photographs", config.pretraining_images),
            "size": config.model.size,
            "channels": teacher.out_channels,
            "image_size": config.model.input_shape,
            "seed": config.seed,
            "steps": 0 if minutes else config.train.steps,
            "minutes": minutes,
            "result": str(result.absolute()),
        }
        run_task(python, task, log)
    return read_measured(result, (len(dataset.test.names), *config.model.input_shape))


def write_inputs(folder: Path, dataset: Dataset, teacher: Teacher) -> dict[str, str]:
    """Writes images and teacher into a folder; returns their paths, by their names in a task.

    The images have the very pixels that our networks see.
    """
    for split, images in zip(Dataset._fields, dataset, strict=True):
        (folder / "images" / split).mkdir(parents=True)
        for number, pixels in enumerate(images.images):
            file = folder / "images" / split / f"{number:06}.png"
            Image.fromarray(pixels).save(file, compress_level=1)
    save_file(torch_state_dict(teacher, "named"), folder / "teacher.safetensors")
    network = PatchDescriptionNetwork(teacher.size, teacher.out_channels)
    image = normalize_images(to_unit_range(jnp.asarray(dataset.train.images[:1])))
    np.save(folder / "features.npy", np.asarray(network.apply(teacher.params, image)))
    return {
        "images": str(folder / "images"),
        "teacher": str(folder / "teacher.safetensors"),
        "teacher_features": str(folder / "features.npy"),
    }


def _link_photographs(folder: Path, source: str) -> dict[str, Any]:
    """Links the photographs into a folder of one class, as torchvision reads them."""
    if not source:
        raise InputError(
            "config.pretraining_images is empty: give a folder of photographs; anomalib always has "
            "the penalty, and needs them even if config.losses.penalty = False"
        )
    files = list_images(Path(source))
    (folder / "all").mkdir(parents=True)
    for number, file in enumerate(files):
        link = folder / "all" / f"{number:06}{file.suffix.lower()}"
        link.symlink_to(file.absolute())
    return {"photographs": str(folder), "photograph_count": len(files)}


def run_task(python: str, task: dict[str, Any], log: Path) -> None:
    """Runs `anomalib_process.py`.

    Args:
      python: path of an interpreter that has anomalib.
      task: as the script expects it.
      log: a file for the output of the process.

    Raises:
      InputError: the process failed; the message ends with its last line.
    """
    with tempfile.TemporaryDirectory() as folder, log.open("w") as output:
        file = Path(folder) / "task.json"
        file.write_text(json.dumps(task))
        result = _run([python, str(_SCRIPT), str(file)], stdout=output, stderr=subprocess.STDOUT)
    if result.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise InputError(
            f"anomalib's training: ended with status {result.returncode}, expected 0; {log} has "
            f"all of its output, whose last line is: {lines[-1]}"
        )


def _run(command: list[str], **streams: Any) -> subprocess.CompletedProcess[str]:
    """Runs a process without the paths of this one's modules."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, text=True, check=False, **streams
    )
