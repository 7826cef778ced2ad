"""Trains a detector in one call, from a folder or from images in memory."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from efficientad_jax import recipes
from efficientad_jax.config import Config, field_types, replace
from efficientad_jax.data.decoding import ImageSource
from efficientad_jax.data.given_images import load_given_images
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.runs.remote import local_workdir
from efficientad_jax.runs.tracking import tracking
from efficientad_jax.runs.workdir import as_started


def train_detector(
    images: str | os.PathLike[str] | Sequence[ImageSource] | Shaped[np.ndarray, "..."],
    workdir: str | os.PathLike[str] | None = None,
    recipe: str = "folder",
    *,
    minutes: float = 0.0,
    fields: Mapping[str, Any] | None = None,
    on_steps: Callable[[int, float], None] | None = None,
    mlflow: str = "",
) -> Detector:
    """Trains and calibrates a detector, as `efficientad train` does.

    The same call with the same work directory resumes a training that was stopped, and returns
    after no time for one that is done.

    Args:
      images: a folder in MVTec AD's layout or of good images; or good images, each a path, encoded
        bytes, a PIL image or an array, or all of them as one array `[n, h, w]` or
        `[n, h, w, channels]`. A tenth of the training images is held out for calibration.
      workdir: a folder, or an address such as `gs://bucket/run`, for the checkpoints and the
        detector; None for a temporary one, without a way to resume.
      recipe: 'folder' for a quarter of an hour on a CPU, 'thorough' for an hour, 'paper' for the
        paper's constants and an accelerator.
      minutes: time for the training steps; 0 for the number of steps of the recipe.
      fields: of the configuration that differ from the recipe's, such as
        `{"train.steps": 2000, "model.input_height": 384}`.
      on_steps: called at the start and after every few steps with the number of steps done and
        their mean loss (NaN at the start); None shows a progress bar on stderr.
      mlflow: address of an MLflow server to track the training in, see `tracking`; '' for none.

    Raises:
      InputError: an image, a field, the work directory or the server cannot be used.
      StoppedError: Ctrl-C or SIGTERM stopped the training; its state is saved.
      DivergenceError: a loss or a parameter is no longer finite.
    """
    is_folder = isinstance(images, str | os.PathLike)
    root = os.fspath(images) if is_folder else ""
    config = configure(recipe, root, minutes=minutes, fields=fields or {})
    with ExitStack() as stack:
        if workdir is None:
            temporary = tempfile.TemporaryDirectory(prefix="efficientad-jax-")
            local = Path(stack.enter_context(temporary))
        else:
            local = stack.enter_context(local_workdir(os.fspath(workdir)))
        config = as_started(config, local)
        dataset = (
            load_configured_dataset(config) if is_folder else load_given_images(images, config)
        )
        stack.enter_context(tracking(mlflow, local))
        return fit_detector(config, dataset, local, on_steps=on_steps)


def configure(recipe: str, root: str, *, minutes: float, fields: Mapping[str, Any]) -> Config:
    """The configuration of a training on a folder.

    Args:
      recipe: a name of `recipes.FOR_FOLDERS`.
      root: the folder of the images, '' for images in memory.
      minutes: see `train_detector`.
      fields: see `train_detector`.

    Raises:
      InputError: there is no such recipe or field, a value cannot be used, or a field is given
        twice.
    """
    if recipe not in recipes.FOR_FOLDERS:
        known = ", ".join(recipes.FOR_FOLDERS)
        raise InputError(f"recipe {recipe!r}: no such recipe, expected one of: {known}")
    known = field_types()
    for name in fields:
        if name not in known:
            raise InputError(
                f"config.{name}: no such field, expected one of: {', '.join(sorted(known))}"
            )
    shorthands = {"dataset.root": root} | ({"train.minutes": minutes} if minutes else {})
    for name, value in shorthands.items():
        if name in fields:
            raise InputError(f"config.{name} = {fields[name]!r}: is given twice, also as {value!r}")
    return replace(recipes.FOR_FOLDERS[recipe](), {**shorthands, **fields})
