"""Runs a sweep: one training per device, and the next one as soon as a device is free.

The main thread runs the steps of all trainings. One thread per device does the work before and
after the steps: loading images, calibration, evaluation. A failed training does not stop others.
"""

import json
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from filelock import BaseFileLock

from efficientad_jax.data.loading import Dataset, load_configured_dataset
from efficientad_jax.detection.file import is_saved
from efficientad_jax.detection.spec import networks_of
from efficientad_jax.errors import DivergenceError, InputError, StoppedError
from efficientad_jax.evaluation.evaluate_run import evaluate_workdir
from efficientad_jax.fit import TrainingInputs, finish_fit, prepare_fit
from efficientad_jax.runs.signals import interruption
from efficientad_jax.runs.workdir import Workdir, claim_workdir
from efficientad_jax.sweep.claims import Claims
from efficientad_jax.sweep.plan import SweepRun
from efficientad_jax.sweep.status import Status, Tell
from efficientad_jax.training.losses import Losses
from efficientad_jax.training.parallel import (
    Device,
    Resident,
    StepInputs,
    resident_on,
    train_side_by_side,
)
from efficientad_jax.training.session import TrainingRun, image_counts, open_training
from efficientad_jax.training.step import TrainState

_POLL_SECONDS = 1.0
# Errors that a user can cause: the message is enough, without a traceback.
_EXPECTED = (InputError, DivergenceError, OSError)


class Outcome(NamedTuple):
    """The result of a sweep.

    Attributes:
      failed: the errors of failed trainings, one line each, by name.
      in_other_processes: names of the trainings that another process is running.
    """

    failed: dict[str, str]
    in_other_processes: list[str]


@dataclass(frozen=True)
class _Training:
    """A training that is ready for its steps or running them."""

    prepared: TrainingInputs
    dataset: Dataset
    resident: Resident
    progress: TrainingRun
    opened: ExitStack


@dataclass
class _Lane:
    """A device and its training, which is in one of three phases.

    Attributes:
      before: the preparation; None when it is done.
      training: the steps; None before they start, and if only the evaluation was missing.
      after: calibration and evaluation; None before they start.
    """

    run: SweepRun
    device: Device
    lock: BaseFileLock
    before: "Future[_Training | Dataset] | None"
    training: _Training | None = None
    after: "Future[str] | None" = None


def is_done(folder: Path) -> bool:
    """Whether a training is over: of its files, the checkpoints are removed last."""
    files = Workdir(folder)
    return is_saved(files.detector) and not files.checkpoints.exists()


def carry_out(
    runs: Sequence[SweepRun], workdir: Path, tell: Tell, *, wait_for_others: bool
) -> Outcome:
    """Runs all trainings of a sweep that are not done and that no other process is running.

    A training's folder is `workdir / run.name`. It has the files that `experiments.train` and
    `experiments.evaluate` write, without checkpoints. Interrupted trainings resume.

    Args:
      runs: see `planned_runs`.
      workdir: an absolute folder, the same for all processes of the sweep.
      tell: called for each change.
      wait_for_others: whether to wait for the trainings of other processes, and to take over those
        of processes that died.

    Raises:
      StoppedError: Ctrl-C or SIGTERM was received; states are saved.
      InputError: `workdir` does not support locks.
    """
    return _Sweep(runs, workdir, tell, wait_for_others=wait_for_others).carry_out()


class _Sweep:
    """The state of `carry_out`."""

    def __init__(
        self, runs: Sequence[SweepRun], workdir: Path, tell: Tell, *, wait_for_others: bool
    ) -> None:
        self.workdir, self.tell, self.wait_for_others = workdir, tell, wait_for_others
        self.claims = Claims(workdir, [run.name for run in runs])
        self.open = list(runs)  # neither started here nor known to be done or failed
        self.lanes: list[_Lane] = []
        self.failed: dict[str, str] = {}

    def carry_out(self) -> Outcome:
        devices = jax.local_devices()
        with ThreadPoolExecutor(len(devices)) as pool, interruption() as interrupted:
            while True:
                stopped = interrupted() != 0
                if stopped:
                    self._close_all()
                else:
                    self._fill(devices, pool)
                if not self.lanes:
                    if stopped:
                        raise StoppedError(interrupted())
                    if not (self.open and self.wait_for_others):
                        return Outcome(self.failed, [run.name for run in self.open])
                    time.sleep(_POLL_SECONDS)
                in_threads = self._advance(pool)
                # A program is compiled for a fixed number of devices: wait until all are ready.
                if self._in_steps and not any(lane.before for lane in self.lanes):
                    if not stopped:
                        self._make_steps()
                elif in_threads:
                    wait(in_threads, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)

    def _fill(self, devices: Sequence[Device], pool: ThreadPoolExecutor) -> None:
        """Starts a training on each free device, as long as trainings are left."""
        taken = {lane.device for lane in self.lanes}
        free = [device for device in devices if device not in taken]
        for run in list(self.open):
            if not free:
                return
            message = self.claims.failed_since(run.name)
            if message is not None:
                self._fail(run, message)
                continue
            lock = self.claims.claim(run.name)
            if lock is None:
                self.tell(run.name, Status("elsewhere"))
                continue
            self.open.remove(run)
            try:
                folder = self.workdir / run.name
                summary = None
                if is_done(folder):
                    claim_workdir(folder, run.config)
                    summary = score_summary(folder)
            except (InputError, OSError, ValueError, LookupError) as error:
                lock.release()
                self._fail(run, _one_line(error))
                continue
            if summary is not None:
                lock.release()
                self.tell(run.name, Status("done", run.config.train.steps, summary))
                continue
            device = free.pop(0)
            self.tell(run.name, Status("preparing"))
            before = pool.submit(_prepare, run, self.workdir / run.name, device)
            self.lanes.append(_Lane(run, device, lock, before))

    def _advance(self, pool: ThreadPoolExecutor) -> list[Future[Any]]:
        """Collects the results of threads that are done; returns the futures of the others."""
        for lane in list(self.lanes):
            folder = self.workdir / lane.run.name
            if lane.before and lane.before.done():
                prepared = self._attempt([lane], lane.before.result)
                lane.before = None
                if isinstance(prepared, _Training):
                    lane.training = prepared
                    self.tell(lane.run.name, Status("training", prepared.progress.step))
                elif prepared is not None:
                    lane.after = pool.submit(_evaluate, folder, lane.device, prepared)
            if lane.training and not lane.after and not lane.training.progress.next_count:
                self.tell(lane.run.name, Status("evaluating", lane.training.progress.step))
                lane.after = pool.submit(_finish, lane.run, folder, lane.device, lane.training)
            if lane.after and lane.after.done():
                summary = self._attempt([lane], lane.after.result)
                if summary is not None:
                    self._end(lane, Status("done", lane.run.config.train.steps, summary))
        futures = [lane.after or lane.before for lane in self.lanes]
        return [future for future in futures if future]

    @property
    def _in_steps(self) -> list[tuple[_Lane, _Training]]:
        return [(lane, lane.training) for lane in self.lanes if lane.training and not lane.after]

    def _make_steps(self) -> None:
        """Runs one dispatch of each group of trainings that share a program."""
        groups: dict[Any, list[tuple[_Lane, _Training]]] = {}
        for lane, training in self._in_steps:
            networks, progress = networks_of(training.prepared.spec), training.progress
            program = networks, progress.objective, progress.optimizer, training.resident.shapes
            groups.setdefault(program, []).append((lane, training))
        dispatched: list[tuple[_Lane, _Training, tuple[TrainState, Losses]]] = []
        for group in groups.values():
            lanes, trainings = zip(*group, strict=True)
            results = self._attempt(lanes, _dispatch, trainings) or ()
            dispatched += [(*pair, result) for pair, result in zip(group, results, strict=False)]
        for lane, training, result in dispatched:
            loss = self._attempt([lane], training.progress.record, *result)
            if loss is not None:
                self.tell(
                    lane.run.name, Status("training", training.progress.step, f"loss {loss:.4f}")
                )

    def _close_all(self) -> None:
        """Saves and ends the trainings that run steps; those in other phases finish their phase."""
        for lane, training in self._in_steps:
            if training.progress.next_count and self._attempt([lane], _save, training):
                self._end(lane, Status("stopped", training.progress.step))

    def _attempt(self, lanes: Sequence[_Lane], work: Callable[..., Any], *arguments: Any) -> Any:
        """Returns the result of `work`; if it raises, ends the lanes as failed and returns None."""
        try:
            return work(*arguments)
        except Exception as error:  # of any type: the other trainings continue
            if not isinstance(error, _EXPECTED):
                traceback.print_exc()
            message = _one_line(error)
        for lane in lanes:
            self.claims.write_failure(lane.run.name, message)
            self._fail(lane.run, message)
            self._end(lane, None)
        return None

    def _fail(self, run: SweepRun, message: str) -> None:
        if run in self.open:
            self.open.remove(run)
        self.failed[run.name] = message
        self.tell(run.name, Status("failed", note=message))

    def _end(self, lane: _Lane, status: Status | None) -> None:
        self.lanes.remove(lane)
        if lane.training:
            try:
                lane.training.opened.close()
            except Exception as error:  # a checkpoint that could not be written
                self.failed.setdefault(lane.run.name, _one_line(error))
        lane.lock.release()
        if status is not None:
            self.tell(lane.run.name, status)


def _prepare(run: SweepRun, folder: Path, device: Device) -> _Training | Dataset:
    """Prepares a training; returns only its dataset if only the evaluation is missing."""
    with jax.default_device(device), ExitStack() as opened:
        dataset = load_configured_dataset(run.config)
        if is_saved(Workdir(folder).detector):
            claim_workdir(folder, run.config)
            return dataset
        prepared = prepare_fit(run.config, dataset, folder)
        networks, counts = networks_of(prepared.spec), image_counts(prepared.data)
        progress = opened.enter_context(
            open_training(run.config, networks, counts, workdir=folder, concurrent=True)
        )
        resident = resident_on(device, prepared.teacher_params, prepared.data)
        return _Training(prepared, dataset, resident, progress, opened.pop_all())


def _dispatch(trainings: Sequence[_Training]) -> list[tuple[TrainState, Losses]]:
    count = min(training.progress.next_count for training in trainings)
    first = trainings[0]
    return train_side_by_side(
        networks_of(first.prepared.spec),
        first.progress.objective,
        first.progress.optimizer,
        residents=[training.resident for training in trainings],
        inputs=[
            StepInputs(t.progress.state, *t.progress.image_indices(count), t.progress.key)
            for t in trainings
        ],
    )


def _save(training: _Training) -> bool:
    training.progress.save()
    return True


def _finish(run: SweepRun, folder: Path, device: Device, training: _Training) -> str:
    with jax.default_device(device):
        training.progress.save()
        state = training.progress.state
        finish_fit(run.config, training.dataset, training.prepared, state=state)
    training.opened.close()
    return _evaluate(folder, device, training.dataset)


def _evaluate(folder: Path, device: Device, dataset: Dataset) -> str:
    with jax.default_device(device):
        evaluation = evaluate_workdir(folder, dataset)
    shutil.rmtree(Workdir(folder).checkpoints, ignore_errors=True)
    return _auroc_in_words(evaluation.metrics.image_auroc)


def score_summary(folder: Path) -> str:
    """Formats the image AU-ROC of a finished training; '' if its dataset has none."""
    try:
        found = json.loads(Workdir(folder).metrics.read_text())["detector"]["image_auroc"]
    except FileNotFoundError:
        return ""
    return _auroc_in_words(found)


def _auroc_in_words(image_auroc: float | None) -> str:
    return "" if image_auroc is None else f"image AU-ROC {image_auroc:.4f}"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, _EXPECTED):
        return text
    return f"{type(error).__name__}: {text[:300]}"
