"""Which trainings are compared, and the table that compares them."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from efficientad_jax.benchmark.trainings.measured import MeasuredTraining
from efficientad_jax.config import Config, replace
from efficientad_jax.data.loading import ImageSet
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.lazy_maps import Enlarged
from efficientad_jax.evaluation.metrics import evaluate
from efficientad_jax.recipes import squeezed
from efficientad_jax.storage.atomic import write_atomically


def comparable(config: Config, minutes: float, steps: int) -> Config:
    """The configuration of our training, with the time for its steps or with their number.

    Args:
      config: of a training.
      minutes: see `config.train.minutes`; 0 for a number of steps.
      steps: their number; 0 for a time.

    Raises:
      InputError: not exactly one of `minutes` and `steps` is above 0, a field has a value for which
        anomalib has no equivalent, or JAX does not use the CPU.
    """
    if bool(minutes) == bool(steps):
        raise InputError(f"--minutes={minutes:g} --steps={steps}: expected one of them above 0")
    if jax.default_backend() != "cpu":
        raise InputError(
            f"device {jax.default_backend()}: anomalib trains on the CPU, expected JAX to do so as "
            "well; set JAX_PLATFORMS=cpu"
        )
    config = squeezed(config)  # as anomalib does it
    model = config.model
    size = model.input_size or "x".join(map(str, model.input_shape))
    found: dict[str, tuple[Any, Any]] = {
        "model.input_size": (size, "256x256"),
        "model.fit": (model.fit, "resize"),
        "model.padding": (model.padding, False),
        "train.batch_size": (config.train.batch_size, 1),
        "dataset.ignore_mask": (config.dataset.ignore_mask, ""),
    }
    for name, (value, expected) in found.items():
        if value != expected:
            raise InputError(
                f"config.{name} = {value!r}: expected {expected!r}, as anomalib trains with that"
            )
    if minutes:
        return replace(config, {"train.minutes": minutes})
    return replace(config, {"train.minutes": 0.0, "train.steps": steps})


class Row(NamedTuple):
    """A training's row. Undefined metrics are None.

    Attributes:
      steps: number of steps made.
      training_minutes: time of the steps.
      milliseconds_per_step: see `MeasuredTraining.seconds_per_step`.
      all_minutes: time with preparation and calibration.
      image_auroc: in [0, 1].
      pixel_auroc: in [0, 1].
      au_pro: up to a false positive rate of 0.3, in [0, 1].
    """

    steps: int
    training_minutes: float
    milliseconds_per_step: float
    all_minutes: float
    image_auroc: float | None
    pixel_auroc: float | None
    au_pro: float | None


_TITLES = (
    "steps",
    "minutes of training",
    "ms per step",
    "minutes in all",
    "image AU-ROC",
    "pixel AU-ROC",
    "AU-PRO (FPR < 0.3)",
)


def table_row(training: MeasuredTraining, test: ImageSet) -> Row:
    """Measures scores and maps by this package's metrics, whichever program computed them.

    The maps are resized from the networks' input to the size of each image.
    """
    metrics = evaluate(
        training.scores,
        test.labels,
        Enlarged(list(training.maps), test.sizes),
        masks=test.masks,
        defects=test.defects,
    )
    return Row(
        training.steps,
        training.training_seconds / 60,
        1000 * training.seconds_per_step,
        training.all_seconds / 60,
        metrics.image_auroc,
        metrics.pixel_auroc,
        metrics.au_pro,
    )


def markdown_table(rows: Mapping[str, Row]) -> str:
    """A table with a line per training."""
    lines = [f"| | {' | '.join(_TITLES)} |", "|---" * (len(_TITLES) + 1) + "|"]
    lines += [f"| {' | '.join([name, *_cells(row)])} |" for name, row in rows.items()]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    metrics = (row.image_auroc, row.pixel_auroc, row.au_pro)
    return [
        str(row.steps),
        f"{row.training_minutes:.1f}",
        f"{row.milliseconds_per_step:.0f}",
        f"{row.all_minutes:.1f}",
        *("" if value is None else f"{value:.4f}" for value in metrics),
    ]


def csv_table(rows: Mapping[str, Row]) -> str:
    """The table as CSV, with all digits; undefined metrics are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["training", *Row._fields])
    writer.writerows([name, *row] for name, row in rows.items())
    return text.getvalue()


def write_comparison(folder: Path, rows: Mapping[str, Row], facts: Mapping[str, str]) -> str:
    """Writes `anomalib.md`, with facts above the table, and `anomalib.csv`.

    Returns:
      The content of `anomalib.md`.

    Raises:
      OSError: a file cannot be written.
    """
    text = "\n".join([*(f"- {key}: {value}" for key, value in facts.items()), "", ""])
    text += markdown_table(rows) + "\n"
    write_atomically(folder / "anomalib.md", text.encode())
    write_atomically(folder / "anomalib.csv", csv_table(rows).encode())
    return text
