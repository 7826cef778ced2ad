"""Trains anomalib's EfficientAd and writes its scores and maps.

    PYTHON anomalib_process.py TASK.json

`anomalib_peer.py` writes the task and starts this script. PYTHON has anomalib; it needs neither JAX
nor this package, of which this script imports nothing.

anomalib's `Engine` makes the steps, with the defaults of anomalib, except for the following:

- The teacher is the given one.
- Lightning validates never, and not after each epoch. After the last step anomalib's own function
  computes the quantiles of the maps, once, from the given validation images.
- A training image is a file of 256x256 pixels, which is decoded in each epoch and not resized.
- There are no more processes for reading than cores.
- Scores and maps are those of the network. anomalib's post-processing would clip them to [0, 1].
"""

import json
import math
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import AnomalibDataModule  # pyright: ignore[reportMissingImports]
from anomalib.data.datasets.image.folder import (  # pyright: ignore[reportMissingImports]
    FolderDataset,
)
from anomalib.data.utils import Split, read_image  # pyright: ignore[reportMissingImports]
from anomalib.engine import Engine  # pyright: ignore[reportMissingImports]
from anomalib.models import EfficientAd  # pyright: ignore[reportMissingImports]
from lightning.pytorch import (  # pyright: ignore[reportMissingImports]
    Callback,
    seed_everything,
)
from safetensors.torch import load_file

# Largest difference between the teacher's features here and those in the task, as a part of the
# largest feature.
_TOLERANCE = 1e-4
# The rate is measured for so many seconds, after so many steps.
_RATE_SECONDS = 30.0
_WARM_UP_STEPS = 3
_REPORT_INTERVAL = 50


class _Images(AnomalibDataModule):
    """The given training and validation images."""

    def __init__(self, folder: Path) -> None:
        """Takes a folder with the folders 'train' and 'validation'."""
        workers = min(8, len(os.sched_getaffinity(0)))
        super().__init__(train_batch_size=1, eval_batch_size=1, num_workers=workers)
        self._folder = folder

    def setup(self, stage: str | None = None) -> None:
        """Lists the images; anomalib would make splits of its own here."""
        del stage
        for name in ("train", "validation"):
            images = FolderDataset(name=name, normal_dir=self._folder / name, split=Split.TRAIN)
            setattr(self, {"train": "train_data", "validation": "val_data"}[name], images)
        self._update_augmentations()

    def _setup(self, _stage: str | None = None) -> None:
        """Is abstract in the base class, and called by nobody."""


class _EfficientAd(EfficientAd):
    """anomalib's model with the teacher of a task.

    Attributes:
      task: is set after creation.
      teacher_difference: the largest difference between the teacher's features of one image here
        and in the task, as a part of the largest feature.
    """

    task: dict[str, Any]
    teacher_difference: float = math.nan

    def prepare_pretrained_model(self) -> None:
        """Loads the teacher and compares its features; anomalib downloads its own one here.

        Raises:
          ValueError: the features differ.
        """
        self.model.teacher.load_state_dict(load_file(self.task["teacher"]))
        expected = np.load(self.task["teacher_features"])
        image = read_image(_files(self.task, "train")[0], as_tensor=True)[None]
        with torch.inference_mode():
            found = self.model.teacher(image).permute(0, 2, 3, 1).numpy()
        self.teacher_difference = float(np.abs(found - expected).max() / np.abs(expected).max())
        if not self.teacher_difference <= _TOLERANCE:
            raise ValueError(
                f"teacher: its features in anomalib's network differ by {self.teacher_difference}"
                f", expected at most {_TOLERANCE} of the largest; detectors with different "
                "teachers are not compared"
            )


class _Clock(Callback):
    """The time of each step; ends the training after a number of seconds.

    Attributes:
      marks: pairs of a number of steps made and the time in seconds, the first with 0 steps.
      learning_rate: of the last step.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.marks: list[tuple[int, float]] = []
        self.learning_rate = math.nan
        self._seconds = seconds

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Notes the start of the first step."""
        del args, kwargs
        if not self.marks:
            self.marks.append((0, time.monotonic()))

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Notes the end of a step."""
        del args, kwargs
        step = trainer.global_step
        self.marks.append((step, time.monotonic()))
        self.learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        if step % _REPORT_INTERVAL == 0:
            print(f"step {step}, {self.marks[-1][1] - self.marks[0][1]:.0f} s", flush=True)
        if step > _WARM_UP_STEPS and self.seconds_after_warm_up > self._seconds:
            trainer.should_stop = True

    @property
    def seconds_after_warm_up(self) -> float:
        """The time of all steps but the first ones."""
        return self.marks[-1][1] - self.marks[_WARM_UP_STEPS][1]

    @property
    def seconds_per_step(self) -> float:
        """The mean time of these steps."""
        return self.seconds_after_warm_up / (self.marks[-1][0] - _WARM_UP_STEPS)


def _train(task: dict[str, Any], steps: int, clock: _Clock) -> tuple[_EfficientAd, _Images]:
    """Trains a new model; returns it with its images."""
    seed_everything(task["seed"])
    size = tuple(task["image_size"])
    model = _EfficientAd(
        imagenet_dir=task["photographs"],
        teacher_out_channels=task["channels"],
        model_size=task["size"],
        pre_processor=EfficientAd.configure_pre_processor(size),
        evaluator=False,
        visualizer=False,
    )
    model.task = task
    images = _Images(Path(task["images"]))
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            callbacks=[clock],
            accelerator="cpu",
            default_root_dir=folder,
            max_steps=steps,
            limit_val_batches=0,
            enable_progress_bar=False,
        )
        engine.fit(model, datamodule=images)
    found = len(model.imagenet_loader.dataset)
    if found != task["photograph_count"]:
        raise ValueError(
            f"photographs {task['photographs']}: anomalib reads {found} of them, expected "
            f"{task['photograph_count']}; it reads no GIF files"
        )
    return model.eval(), images


def _files(task: dict[str, Any], split: str) -> list[Path]:
    return sorted((Path(task["images"]) / split).iterdir())


def _run(task: dict[str, Any]) -> None:
    """Trains, calibrates, and writes scores and maps of the test images."""
    start = time.monotonic()
    steps = task["steps"]
    if not steps:
        rate = _Clock(_RATE_SECONDS)
        _train(task, sys.maxsize, rate)
        steps = max(1, int(60 * task["minutes"] / rate.seconds_per_step))
        print(f"{1000 * rate.seconds_per_step:.0f} ms per step, {steps} steps", flush=True)
    clock = _Clock()
    model, images = _train(task, steps, clock)
    trained = time.monotonic()
    model.model.quantiles.update(model.map_norm_quantiles(images.val_dataloader()))
    calibrated = time.monotonic()
    scores, maps = [], []
    for file in _files(task, "test"):
        with torch.inference_mode():
            result = model.model(read_image(file, as_tensor=True)[None])
        scores.append(float(result.pred_score.squeeze()))
        maps.append(result.anomaly_map[0, 0].numpy())
    facts = {
        "version": version("anomalib"),
        "torch": version("torch"),
        "preparation_seconds": clock.marks[0][1] - start,
        "calibration_seconds": calibrated - trained,
        "last_learning_rate": clock.learning_rate,
        "teacher_difference": model.teacher_difference,
    }
    np.savez(
        task["result"],
        scores=np.array(scores, np.float32),
        maps=np.stack(maps).astype(np.float32),
        marks=np.array(clock.marks, np.float64),
        facts=np.array(json.dumps(facts)),
    )


if __name__ == "__main__":
    try:
        _run(json.loads(Path(sys.argv[1]).read_text()))
    except ValueError as error:
        sys.exit(f"{type(error).__name__}: {error}")
