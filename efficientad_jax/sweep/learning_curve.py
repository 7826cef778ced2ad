"""Detectors of many lengths of training from one training at a constant rate.

The learning rate is constant up to the step `decay_at * steps`, whatever `steps` is. So trainings
of all lengths share their first steps: one training at the constant rate, the trunk, passes the
points at which they branch off. Each branch makes only its last steps, at its decayed rate, and
ends with the detector of a separate training, bit for bit.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from efficientad_jax.config import Config, as_dict, replace
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.errors import InputError
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.runs.workdir import Workdir, as_started
from efficientad_jax.scheduling.job import Event, Report
from efficientad_jax.scheduling.train_and_evaluate import finished, train_and_evaluate
from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.sweep.proxy_ranking import measure_finished


def branch_point(config: Config, steps: int) -> int:
    """The last step at the constant rate of a training of `steps` steps."""
    return int(steps * config.train.decay_at)


def train_branches(
    config: Config, folders: Mapping[int, Path], trunk: Path, report: Report, *, cache_gb: float
) -> str:
    """Trains, evaluates and measures a detector for each number of steps.

    The measurement is the proxy AU-ROC, see `measure_finished`.

    Args:
      config: of the trainings, without their number of steps.
      folders: the work directory for each number of steps, absolute.
      trunk: the work directory of the trunk, absolute.
      report: as for `train_and_evaluate`.
      cache_gb: as for `train_and_evaluate`.

    Returns:
      The image AU-ROC of the longest training in words, '' without test images.

    Raises:
      InputError: as `train_and_evaluate` and `measure_finished`, or a branch has no step at the
        constant rate.
    """
    text = ""
    for steps, workdir in sorted(folders.items()):
        branch = replace(config, {"train.steps": steps})
        result = finished(branch, workdir)
        if result is None:
            if not workdir.exists():
                _branch_off(branch, trunk, workdir, report=report, cache_gb=cache_gb)
            result = train_and_evaluate(branch, workdir, report, cache_gb=cache_gb)
        measure_finished(branch, workdir)
        report(Event("note", steps, f"{steps} steps: {result}"))
        text = result
    return text


def _branch_off(
    branch: Config, trunk: Path, workdir: Path, *, report: Report, cache_gb: float
) -> None:
    """Brings the trunk to a branch's point and copies its checkpoint into the branch's folder."""
    point = branch_point(branch, branch.train.steps)
    if not point:
        raise InputError(
            f"--steps={branch.train.steps}: no step before the decay at "
            f"{branch.train.decay_at:g} of the steps, expected more steps"
        )
    # Branches choose by measurements after the decay, which the trunk does not reach.
    unmeasured = {"train.proxy_every": 0, "train.patience": 0}
    constant = replace(branch, {"train.steps": point, "train.decay_factor": 1.0} | unmeasured)
    constant = as_started(constant, trunk)
    fit_detector(
        constant,
        load_configured_dataset(constant),
        trunk,
        on_steps=lambda step, loss: report(Event("training", step, f"trunk, loss {loss:.4f}")),
        disk_cache_gb=cache_gb,
    )
    source, partly = Workdir(trunk), Workdir(workdir.with_name(f".{workdir.name}"))
    shutil.rmtree(partly.path, ignore_errors=True)
    shutil.copytree(source.checkpoints / str(point), partly.checkpoints / str(point))
    for file in (source.teacher_sha256, source.data):
        shutil.copy(file, partly.path)
    write_atomically(partly.config, json.dumps(as_dict(as_started(branch, trunk))).encode())
    partly.path.rename(workdir)
