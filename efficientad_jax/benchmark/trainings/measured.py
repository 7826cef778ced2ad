"""A training that was measured: its times, and its scores and maps of the test images."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from efficientad_jax.errors import InputError, first_line
from efficientad_jax.storage.atomic import write_atomically

# The first steps compile and start threads. They do not count in the time per step.
WARM_UP_STEPS = 10


class MeasuredTraining(NamedTuple):
    """Times and results of a training.

    Attributes:
      scores: of the test images.
      maps: of the test images, at the size of the networks' input.
      marks: numbers of steps made and the time in seconds at each; the first has 0 steps.
      facts: 'preparation_seconds' before the first step, 'calibration_seconds' after the last one,
        and whatever else describes the training.
    """

    scores: Float32[np.ndarray, " n"]
    maps: Float32[np.ndarray, "n h w"]
    marks: Float64[np.ndarray, "m 2"]
    facts: dict[str, Any]

    @property
    def steps(self) -> int:
        """The number of steps made."""
        return int(self.marks[-1, 0])

    @property
    def training_seconds(self) -> float:
        """The time from the start of the first step to the end of the last one."""
        return float(self.marks[-1, 1] - self.marks[0, 1])

    @property
    def all_seconds(self) -> float:
        """The time with preparation and calibration."""
        more = self.facts["preparation_seconds"] + self.facts["calibration_seconds"]
        return self.training_seconds + more

    @property
    def seconds_per_step(self) -> float:
        """The mean over the steps after the first ten or more; over all if there are no others."""
        after = np.flatnonzero(self.marks[:-1, 0] >= WARM_UP_STEPS)
        first = self.marks[after[0] if len(after) else 0]
        steps, seconds = self.marks[-1] - first
        return float(seconds / steps)


def write_measured(path: Path, training: MeasuredTraining) -> None:
    """Writes a training as an .npz file, as `anomalib_process.py` does."""
    content = io.BytesIO()
    np.savez(
        content,
        scores=training.scores,
        maps=training.maps,
        marks=training.marks,
        facts=np.array(json.dumps(training.facts)),
    )
    write_atomically(path, content.getvalue())


def measure_once(
    path: Path,
    identity: dict[str, Any],
    maps_shape: tuple[int, int, int],
    *,
    train: Callable[[Path], MeasuredTraining],
) -> MeasuredTraining:
    """The training in a file if it is the same one; otherwise it is made and written.

    Args:
      path: of the file.
      identity: of the training, as JSON has it; a file with another one is replaced.
      maps_shape: see `read_measured`.
      train: is called with the path to make the training.

    Raises:
      InputError: see `read_measured`; and the errors of `train`.
      OSError: the file cannot be written.
    """
    if path.exists():
        training = read_measured(path, maps_shape)
        if training.facts.get("identity") == identity:
            print(f"{path}: is measured already; remove the file to measure again", flush=True)
            return training
    print(f"{path.stem}: trains", flush=True)
    training = train(path)
    training = training._replace(facts=training.facts | {"identity": identity})
    write_measured(path, training)
    return read_measured(path, maps_shape)


def read_measured(path: Path, maps_shape: tuple[int, int, int]) -> MeasuredTraining:
    """Reads the file of a training.

    Args:
      path: of the file.
      maps_shape: number of test images, and height and width of the maps.

    Raises:
      InputError: the file cannot be read, or its content does not suit the test images.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("scores", "maps", "marks")}
            facts = json.loads(str(file["facts"]))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(
            f"results {path}: cannot be read ({first_line(error)}); remove the file to measure "
            "again"
        ) from error
    _check(path, arrays, facts, shape=maps_shape)
    return MeasuredTraining(**arrays, facts=facts)


def _check(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    *,
    shape: tuple[int, int, int],
) -> None:
    """Checks the content of the file of a training.

    Raises:
      InputError: an array has a wrong shape or is not finite, or a time is missing.
    """
    expected = {"scores": shape[:1], "maps": shape, "marks": (len(arrays["marks"]), 2)}
    for name, array in arrays.items():
        if array.shape != expected[name]:
            raise InputError(
                f"results {path}: {name} of shape {array.shape}, expected {expected[name]}; remove "
                "the file to measure again"
            )
        if not np.isfinite(array).all():
            raise InputError(
                f"results {path}: {name} are not all finite, expected finite numbers; the training "
                "may have diverged"
            )
    if len(arrays["marks"]) < 2:
        raise InputError(f"results {path}: no steps, expected at least one")
    for name in ("preparation_seconds", "calibration_seconds"):
        if not isinstance(facts.get(name), float):
            raise InputError(f"results {path}: no {name}, expected them; remove the file")
