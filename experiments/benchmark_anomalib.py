"""Trains anomalib's EfficientAd and ours on the same images and CPU, and compares the detectors.

    python3 -m venv ENV && ENV/bin/pip install 'anomalib==2.7.*'

    python -m experiments.benchmark_anomalib --minutes=15 --config=configs/folder.py \
        --config.dataset.root=FOLDER --config.pretraining_images=PHOTOGRAPHS \
        --anomalib_python=ENV/bin/python --output=runs/anomalib_minutes

    python -m experiments.benchmark_anomalib --steps=2000 --config=configs/paper.py \
        --config.dataset.root=FOLDER --config.pretraining_images=PHOTOGRAPHS \
        --anomalib_python=ENV/bin/python --output=runs/anomalib_steps

The first gives each the same time, with our recipe for a folder; the second the same number of
steps, with all losses of the paper. The output folder gets the table as `anomalib.md` and
`anomalib.csv`, and scores and maps of both as .npz files, which a second start does not compute
again if nothing has changed. anomalib runs in a process of its own, by any Python that has it.

The same for both: the CPU with all cores that this process may use, one training after the other;
the teacher, whose features are compared before a step is made; the training, validation and test
images, resized to 256x256 pixels by this package; the photographs of the penalty; a batch of one
image; the metrics of this package, of maps at 256x256 pixels that it resizes to the images.

The time, for both: `--minutes` bounds the time of the steps only. The number of steps that fit is
computed from a rate that is measured before. Preparation (the teacher's statistics and features,
photographs that are read ahead, the measurement of the rate) and calibration on the validation
images are not in "minutes of training", but in "minutes in all". Neither has the time of decoding
and resizing training images, of starting Python, or of the test images. "ms per step" is the mean
of the steps after the first ten or more.

The differences, apart from the implementation:

- anomalib has its defaults, and so all losses and a learning rate of 1e-4. In version 2.7 this
  never decays, as its schedule counts epochs for steps. Ours is what the configuration says; the
  recipe for a folder has the hard loss only, ten times this rate at first, and another decay.
- anomalib computes the teacher's features in every step. Ours computes them once, before the first
  step, unless `config.train.feature_cache_gb` is too small.
- anomalib reads a training image and a photograph from their files in every step, and resizes the
  photograph. Ours keeps images and photographs in memory.
- anomalib pads its maps with zeros to 64x64 values and resizes them before it computes quantiles.
  Ours has 56x56 values, without padding, and resizes them afterwards, unless
  `config.calibration.upsample_first` is set.
- anomalib's score is the maximum of the resized map. Ours is what `config.calibration.score` says.
- By default anomalib validates after each epoch, on test images. Here it computes its quantiles
  once, from the same validation images as ours, and has more time for its steps.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from efficientad_jax.benchmark.implementations import processor
from efficientad_jax.benchmark.trainings.anomalib_peer import anomalib_version, train_anomalib
from efficientad_jax.benchmark.trainings.comparison import (
    comparable,
    table_row,
    write_comparison,
)
from efficientad_jax.benchmark.trainings.measured import MeasuredTraining, measure_once
from efficientad_jax.benchmark.trainings.own_training import train_own
from efficientad_jax.config import Config, as_dict, read_config
from efficientad_jax.data.loading import Dataset, load_configured_dataset
from efficientad_jax.errors import InputError
from efficientad_jax.networks.teacher import load_teacher
from experiments import run

_CONFIG = config_flags.DEFINE_config_file("config")
flags.mark_flag_as_required("config")
_MINUTES = flags.DEFINE_float("minutes", 0.0, "time for the steps of each", lower_bound=0.0)
_STEPS = flags.DEFINE_integer("steps", 0, "number of steps of each", lower_bound=0)
_PYTHON = flags.DEFINE_string(
    "anomalib_python", "python3", "a Python that has anomalib: its name or path"
)
_OUTPUT = flags.DEFINE_string("output", "runs/benchmark_anomalib", "folder for the results")


def main() -> int:
    """Trains both, measures both and writes the table."""
    config = comparable(read_config(_CONFIG.value), _MINUTES.value, _STEPS.value)
    peer = anomalib_version(_PYTHON.value)
    dataset = load_configured_dataset(config)
    if not dataset.test.names:
        raise InputError(f"dataset {config.dataset.root}: has no test images, expected some")
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    identity = _identity(config, dataset)
    maps_shape = (len(dataset.test.names), *config.model.input_shape)
    trainings = {
        f"efficientad_jax {version('efficientad-jax')}": measure_once(
            output / "efficientad_jax.npz",
            identity,
            maps_shape,
            train=lambda file: train_own(config, dataset),
        ),
        f"anomalib {peer}": measure_once(
            output / "anomalib.npz",
            identity | {"anomalib": peer},
            maps_shape,
            train=lambda file: train_anomalib(
                _PYTHON.value, config, dataset, minutes=_MINUTES.value, result=file
            ),
        ),
    }
    rows = {name: table_row(training, dataset.test) for name, training in trainings.items()}
    print(write_comparison(output, rows, _facts(config, dataset, list(trainings.values()))))
    print(f"results: {output}")
    return 0


def _identity(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Identifies a comparison: results with another one are not reused."""
    pixels = hashlib.sha256()
    for split in dataset:
        pixels.update(split.images.tobytes())
    return {
        "config": as_dict(config),
        "images": pixels.hexdigest(),
        "teacher": load_teacher(config.teacher, config.model.size).sha256,
    }


def _facts(config: Config, dataset: Dataset, trainings: list[MeasuredTraining]) -> dict[str, str]:
    """The facts above the table."""
    losses = ["hard"]
    losses += [name for name in ("penalty", "autoencoder") if getattr(config.losses, name)]
    peer = trainings[-1].facts
    return {
        "images": f"{config.dataset.root} {config.category}".strip(),
        "training, validation and test images": ", ".join(str(len(s.names)) for s in dataset),
        "bound": f"{_MINUTES.value:g} minutes" if _MINUTES.value else f"{_STEPS.value} steps",
        "seed": str(config.seed),
        "networks": config.model.size,
        "device": processor(),
        "jax, torch": f"{jax.__version__}, {peer['torch']}",
        "our losses": ", ".join(losses),
        "our score": config.calibration.score,
        "anomalib's last learning rate": f"{peer['last_learning_rate']:g}",
        "largest difference between the teacher's features": f"{peer['teacher_difference']:.1e}",
    }


if __name__ == "__main__":
    run(main)
