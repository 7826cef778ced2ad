"""Runs a plan: a job per training, which also evaluates the runs that take its detector."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from efficientad_jax.config import Config, read_config
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.metrics import evaluate
from efficientad_jax.reproduction.plan import Run
from efficientad_jax.reproduction.recalibration import CalibrationChoice, recalibrated_scores
from efficientad_jax.reproduction.results import Results
from efficientad_jax.runs.workdir import Workdir, claim_workdir
from efficientad_jax.scheduling.job import Event, Job, Report
from efficientad_jax.scheduling.train_and_evaluate import train_and_evaluate
from efficientad_jax.storage.atomic import write_atomically


def planned_jobs(
    runs: Sequence[Run], results: Results, *, cache_gb: float
) -> tuple[dict[str, list[Run]], list[Job], dict[Run, str]]:
    """The jobs for all runs that are not done.

    Args:
      runs: see `planned_runs`.
      results: the results that exist.
      cache_gb: see `train_and_evaluate`.

    Returns:
      The runs of each job by the job's name, the jobs, and the error of each run whose result
      cannot be used.
    """
    missing: dict[Run, list[Run]] = {}
    unusable: dict[Run, str] = {}
    for run in runs:
        try:
            if results.read(run) is None:
                missing.setdefault(run.trained, []).append(run)
        except InputError as error:
            unusable[run] = str(error)
    jobs = []
    for trained, group in missing.items():
        training = results.config(trained) if trained in group else None
        recalibrated = {
            results.folder / run.name: results.config(run) for run in group if run != trained
        }
        work = partial(
            _carry_out,
            training,
            results.place(trained),
            recalibrated=recalibrated,
            cache_gb=cache_gb,
        )
        jobs.append(Job(trained.name, results.config(trained).train.steps, work))
    return {trained.name: group for trained, group in missing.items()}, jobs, unusable


def _carry_out(
    training: Config | None,
    folder: Path,
    report: Report,
    *,
    recalibrated: Mapping[Path, Config],
    cache_gb: float,
) -> str:
    """Trains and evaluates unless that is done, then evaluates with other calibrations."""
    text = ""
    if training is not None:
        text = train_and_evaluate(training, folder, report, cache_gb=cache_gb)
    if recalibrated:
        report(Event("evaluating"))
        _recalibrate(folder, recalibrated)
    return text


def _recalibrate(trained: Path, configs: Mapping[Path, Config]) -> None:
    """Evaluates the detector of one run with the calibrations of other runs, by their folders."""
    detector = Detector.load(Workdir(trained).detector)
    choices = [
        CalibrationChoice(c.calibration.q_a, c.calibration.q_b, c.calibration.normalize)
        for c in configs.values()
    ]
    dataset = load_configured_dataset(read_config(detector.config), detector.framing)
    test = dataset.test
    scores = recalibrated_scores(detector, dataset.validation.images, test.images, choices)
    for (folder, config), run_scores in zip(configs.items(), scores, strict=True):
        metrics = evaluate(run_scores, test.labels, defects=test.defects)
        summary = {"detector": metrics.as_dict()}
        claim_workdir(folder, config)
        write_atomically(Workdir(folder).metrics, (json.dumps(summary, indent=2) + "\n").encode())
