"""The job of sweeps and tables: what `experiments.train` and `experiments.evaluate` do."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from efficientad_jax.config import Config
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.file import is_saved
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.evaluate_run import evaluate_workdir
from efficientad_jax.fitting.fit_detector import fit_detector
from efficientad_jax.runs.workdir import Workdir, as_started, claim_workdir
from efficientad_jax.scheduling.job import Event, Report

_LOCK_SECONDS = 30.0


def train_and_evaluate(config: Config, folder: Path, report: Report, *, cache_gb: float) -> str:
    """Trains, or resumes, and evaluates in a work directory; then removes its checkpoints.

    Args:
      config: of the training.
      folder: its work directory, absolute.
      report: called for each stage and after each dispatch of steps.
      cache_gb: size of the cache of teacher features on this machine's disk, 0 for none.

    Returns:
      The image AU-ROC in words, '' without test images.

    Raises:
      StoppedError, InputError, DivergenceError, OSError: see `fit_detector`.
      InputError: another process trains in the folder.
    """
    files = Workdir(folder)
    report(Event("preparing"))
    with _only_process(folder):
        config = as_started(config, folder)
        dataset = load_configured_dataset(config)
        # With a saved detector, only the evaluation is missing.
        if is_saved(files.detector):
            claim_workdir(folder, config)
        else:
            fit_detector(
                config,
                dataset,
                folder,
                on_steps=lambda step, loss: report(Event("training", step, f"loss {loss:.4f}")),
                disk_cache_gb=cache_gb,
            )
        report(Event("evaluating", config.train.steps))
        evaluation = evaluate_workdir(folder, dataset)
        shutil.rmtree(files.checkpoints, ignore_errors=True)
    return _in_words(evaluation.metrics.image_auroc)


@contextmanager
def _only_process(folder: Path) -> Iterator[None]:
    """Locks a work directory; a file system without locks is trusted.

    The lock waits, as a process whose machine has died may hold it for a while.
    """
    file = folder / ".lock"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(file, timeout=_LOCK_SECONDS))
            stack.callback(file.unlink, missing_ok=True)
        except Timeout:
            raise InputError(f"workdir {folder}: another process trains in it") from None
        except NotImplementedError:
            pass
        yield


def finished(config: Config, folder: Path) -> str | None:
    """The image AU-ROC in words of a training that is over, None for one that is not.

    Of a training's files, the checkpoints are removed last.

    Raises:
      InputError: the folder belongs to another configuration, or its metrics cannot be read.
    """
    files = Workdir(folder)
    if not is_saved(files.detector) or files.checkpoints.exists():
        return None
    claim_workdir(folder, config)
    try:
        return _in_words(json.loads(files.metrics.read_text())["detector"]["image_auroc"])
    except FileNotFoundError:  # there are no test images
        return ""
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{files.metrics}: cannot be read ({error}); remove it and {files.detector} to train "
            "again"
        ) from error


def _in_words(image_auroc: float | None) -> str:
    return "" if image_auroc is None else f"image AU-ROC {image_auroc:.4f}"
