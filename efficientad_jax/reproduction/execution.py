"""Runs a plan: finished runs are kept, failures are reported, and the other runs continue."""

import json
import shutil
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import jax

from efficientad_jax.config import Config, as_dict, read_config
from efficientad_jax.data.loading import Dataset, load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.file import is_saved
from efficientad_jax.errors import DivergenceError, InputError, StoppedError
from efficientad_jax.evaluation.evaluate_run import evaluate_workdir
from efficientad_jax.evaluation.metrics import evaluate
from efficientad_jax.fit import fit_detector
from efficientad_jax.reproduction.plan import Inputs, Run, configuration_of
from efficientad_jax.reproduction.recalibration import CalibrationChoice, recalibrated_scores
from efficientad_jax.runs.workdir import Workdir, claim_workdir, differences
from efficientad_jax.storage.atomic import write_atomically

# Paths do not identify a run: results may be moved, and read without the data.
_PATHS = ("root", "data_dir")


def read_metrics(results: Path, run: Run, base: Config, inputs: Inputs) -> dict[str, Any] | None:
    """Reads `metrics.json` of a run; None if the run is not done.

    Raises:
      InputError: the file belongs to another configuration, or is damaged.
    """
    folder = results / run.name
    files = Workdir(folder)
    if not files.metrics.is_file():
        return None
    try:
        metrics = json.loads(files.metrics.read_text())
        stored = as_dict(read_config(json.loads(files.config.read_text())))
    except (OSError, ValueError, InputError) as error:
        raise InputError(
            f"results {folder}: {files.metrics.name} or {files.config.name} cannot be read "
            f"({error}); remove the folder to run it again"
        ) from error
    expected = as_dict(configuration_of(run, base, inputs))
    differing = differences(_without_paths(stored), _without_paths(expected))
    if differing:
        raise InputError(
            f"results {folder}: of a configuration with other {', '.join(sorted(differing))}; "
            "give another --results, or remove the folder"
        )
    return metrics


def carry_out(  # long: the order of the runs is its subject
    runs: Sequence[Run],
    base: Config,
    inputs: Inputs,
    results: Path,
    tell: Callable[[str], None],
) -> dict[Run, str]:
    """Does all runs that are not done.

    A run's folder is `results / run.name`. The run is done if `metrics.json` exists; its
    checkpoints are removed then. An interrupted run resumes from its last checkpoint.

    Args:
      runs: see `planned_runs`.
      base: configuration, as in `configs/paper.py`.
      inputs: datasets and teachers that the runs read.
      results: an absolute folder.
      tell: called with a line when a run starts, ends or fails.

    Returns:
      The error, one line, of each run that failed.

    Raises:
      StoppedError: Ctrl-C or SIGTERM was received in a training; its state is saved, and no other
        run starts. Between trainings, the exception of the signal itself is raised.
    """
    failed: dict[Run, str] = {}

    def attempt(for_runs: Sequence[Run], work: Callable[..., Any], *arguments: Any) -> Any:
        """Returns the result of `work`; if it raises, marks the runs as failed and returns None."""
        try:
            return work(*arguments)
        except StoppedError:  # requested by the user, and not a failure
            raise
        except (InputError, DivergenceError, OSError) as error:
            message = " ".join(str(error).split())
        except Exception as error:  # of any type: the other runs continue
            traceback.print_exc()
            message = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        for run in for_runs:
            failed[run] = message
            tell(f"{run.name}: failed: {message}")
        return None

    def is_done(run: Run) -> bool:
        return read_metrics(results, run, base, inputs) is not None

    configure = partial(configuration_of, base=base, inputs=inputs)
    for _, group in groupby(runs, lambda run: (run.dataset, run.category, run.seed)):
        missing = [run for run in group if attempt([run], is_done, run) is False]
        if not missing:
            continue
        dataset = attempt(missing, load_configured_dataset, configure(missing[0]))
        if dataset is None:
            continue
        for run in missing:
            if run == run.trained:
                tell(f"{run.name}: training")
                folder = results / run.name
                attempt([run], _train_and_evaluate, configure(run), dataset, folder)
                if run not in failed:
                    tell(f"{run.name}: done")
                # Each run compiles other programs, which would stay in memory.
                jax.clear_caches()
        for trained in dict.fromkeys(run.trained for run in missing):
            changed = [run for run in missing if run.trained == trained != run]
            configs = {run: configure(run) for run in changed}
            if not changed:
                continue
            attempt(changed, _recalibrate, results, trained, configs, dataset)
            for run in changed:
                if run not in failed:
                    tell(f"{run.name}: done")
    return failed


def _train_and_evaluate(config: Config, dataset: Dataset, folder: Path) -> None:
    """Trains and evaluates one run in its folder; removes the checkpoints afterwards."""
    # With a saved detector, only the evaluation is missing.
    if is_saved(Workdir(folder).detector):
        claim_workdir(folder, config)
    else:
        fit_detector(config, dataset, folder)
    evaluate_workdir(folder, dataset)
    shutil.rmtree(Workdir(folder).checkpoints, ignore_errors=True)


def _recalibrate(results: Path, trained: Run, configs: dict[Run, Config], dataset: Dataset) -> None:
    """Evaluates the detector of one run with the calibrations of other runs."""
    detector = Detector.load(Workdir(results / trained.name).detector)
    choices = [
        CalibrationChoice(c.calibration.q_a, c.calibration.q_b, c.calibration.normalize)
        for c in configs.values()
    ]
    test = dataset.test
    scores = recalibrated_scores(detector, dataset.validation.images, test.images, choices)
    for (run, config), run_scores in zip(configs.items(), scores, strict=True):
        metrics = evaluate(run_scores, test.labels, defects=test.defects)
        summary = {"detector": metrics.as_dict()}
        folder = claim_workdir(results / run.name, config)
        write_atomically(Workdir(folder).metrics, (json.dumps(summary, indent=2) + "\n").encode())


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    dataset = {k: v for k, v in config["dataset"].items() if k not in _PATHS}
    return {**config, "dataset": dataset}
