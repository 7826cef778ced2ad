"""Trains a detector of this package and computes its scores and maps of the test images."""

import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from efficientad_jax.benchmark.trainings.measured import MeasuredTraining
from efficientad_jax.config import Config
from efficientad_jax.data.decoding import resize_map
from efficientad_jax.data.loading import Dataset
from efficientad_jax.errors import StoppedError
from efficientad_jax.fitting.fit_detector import fit_detector


def train_own(config: Config, dataset: Dataset) -> MeasuredTraining:
    """Trains in a temporary work directory.

    Args:
      config: of the training.
      dataset: its images, all resized to the networks' input.

    Raises:
      InputError, DivergenceError, OSError: see `fit_detector`.
    """
    marks: list[tuple[int, float]] = []

    def mark(step: int, loss: float) -> None:
        del loss
        marks.append((step, time.monotonic()))

    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        try:
            detector = fit_detector(config, dataset, Path(folder) / "workdir", on_steps=mark)
        except StoppedError as stopped:
            # There is nothing to resume, as the state is gone with the folder.
            signal.raise_signal(stopped.signal)
            raise
        end = time.monotonic()
    detections = detector.detect_resized(dataset.test.images, seen=dataset.test.sizes)
    size = config.model.input_shape
    return MeasuredTraining(
        np.array([d.score for d in detections], np.float32),
        np.stack([resize_map(d.anomaly_map, size) for d in detections]).astype(np.float32),
        np.array(marks, np.float64),
        {
            "preparation_seconds": marks[0][1] - start,
            "calibration_seconds": end - marks[-1][1],
        },
    )
