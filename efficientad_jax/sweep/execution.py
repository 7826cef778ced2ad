"""Carrying a sweep out: a training on each device, the next one where one has ended.

The main thread makes the steps of all trainings; what comes before and after them (images,
calibration, evaluation) is done in a thread for each device. What fails, fails alone.
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
from efficientad_jax.detection.spec import networks_of
from efficientad_jax.errors import DivergenceError, InputError, StoppedError
from efficientad_jax.evaluation.evaluate_run import evaluate_workdir
from efficientad_jax.fit import Prepared, finish_fit, prepare_fit
from efficientad_jax.runs.signals import interruption
from efficientad_jax.runs.workdir import METRICS_FILE, claim_workdir
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
# What a user can cause: its message says all.
_EXPECTED = (InputError, DivergenceError, OSError)


class Outcome(NamedTuple):
    """What came of a sweep.

    Attributes:
      failed: one line on each training that failed, by name.
      elsewhere: the trainings that another process is doing.
    """

    failed: dict[str, str]
    elsewhere: list[str]


@dataclass(frozen=True)
class _Training:
    """A training that is ready for its steps, or in them."""

    prepared: Prepared
    dataset: Dataset
    resident: Resident
    progress: TrainingRun
    opened: ExitStack


@dataclass
class _Lane:
    """A device and the training that has it, in one of its three parts.

    Attributes:
      before: its preparation, None once that has ended.
      training: its steps; None before them, and where only the evaluation was missing.
      after: its calibration and evaluation, None before them.
    """

    run: SweepRun
    device: Device
    lock: BaseFileLock
    before: "Future[_Training | Dataset] | None"
    training: _Training | None = None
    after: "Future[str] | None" = None


def is_done(folder: Path) -> bool:
    """Whether a training is over: of its files, the checkpoints are removed last."""
    detector = folder / "detector" / "detector.json"
    return detector.is_file() and not (folder / "checkpoints").exists()


def carry_out(runs: Sequence[SweepRun], workdir: Path, tell: Tell, until_all: bool) -> Outcome:
    """Does all trainings of a sweep that are not done and that no other process is doing.

    A training's folder is `workdir / run.name`, as `experiments.train` and `experiments.evaluate`
    leave it, without its checkpoints. What was stopped or killed goes on from there.

    Args:
      runs: see `planned_runs`.
      workdir: an absolute folder, the same for all processes that take part.
      tell: is told of each change.
      until_all: whether to wait for the trainings of other processes, and take over those of
        processes that died.

    Raises:
      StoppedError: Ctrl-C or SIGTERM came; states are saved.
      InputError: locks cannot be had in `workdir`.
    """
    return _Sweep(runs, workdir, tell, until_all).carry_out()


class _Sweep:
    """The state of `carry_out`."""

    def __init__(
        self, runs: Sequence[SweepRun], workdir: Path, tell: Tell, until_all: bool
    ) -> None:
        self.workdir, self.tell, self.until_all = workdir, tell, until_all
        self.claims = Claims(workdir, [run.name for run in runs])
        self.open = list(runs)  # neither begun here nor known to be over
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
                    if not (self.open and self.until_all):
                        return Outcome(self.failed, [run.name for run in self.open])
                    time.sleep(_POLL_SECONDS)
                in_threads = self._advance(pool)
                # A program is compiled for a number of devices: wait until all are ready.
                if self._in_steps and not any(lane.before for lane in self.lanes):
                    if not stopped:
                        self._make_steps()
                elif in_threads:
                    wait(in_threads, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)

    def _fill(self, devices: Sequence[Device], pool: ThreadPoolExecutor) -> None:
        """Begins a training on each free device, as long as there are any."""
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
                figure = None
                if is_done(folder):
                    claim_workdir(folder, run.config)
                    figure = figure_of(folder)
            except (InputError, OSError, ValueError, LookupError) as error:
                lock.release()
                self._fail(run, _in_a_line(error))
                continue
            if figure is not None:
                lock.release()
                self.tell(run.name, Status("done", run.config.train.steps, figure))
                continue
            device = free.pop(0)
            self.tell(run.name, Status("preparing"))
            before = pool.submit(_prepare, run, self.workdir / run.name, device)
            self.lanes.append(_Lane(run, device, lock, before))

    def _advance(self, pool: ThreadPoolExecutor) -> list[Future[Any]]:
        """Takes what threads have ended; returns what they are at."""
        for lane in list(self.lanes):
            folder = self.workdir / lane.run.name
            if lane.before and lane.before.done():
                found = self._attempt([lane], lane.before.result)
                lane.before = None
                if isinstance(found, _Training):
                    lane.training = found
                    self.tell(lane.run.name, Status("training", found.progress.step))
                elif found is not None:
                    lane.after = pool.submit(_evaluate, folder, lane.device, found)
            if lane.training and not lane.after and not lane.training.progress.next_count:
                self.tell(lane.run.name, Status("evaluating", lane.training.progress.step))
                lane.after = pool.submit(_finish, lane.run, folder, lane.device, lane.training)
            if lane.after and lane.after.done():
                figure = self._attempt([lane], lane.after.result)
                if figure is not None:
                    self._end(lane, Status("done", lane.run.config.train.steps, figure))
        futures = [lane.after or lane.before for lane in self.lanes]
        return [future for future in futures if future]

    @property
    def _in_steps(self) -> list[tuple[_Lane, _Training]]:
        return [(lane, lane.training) for lane in self.lanes if lane.training and not lane.after]

    def _make_steps(self) -> None:
        """One dispatch of each group of trainings that one program does for."""
        groups: dict[Any, list[tuple[_Lane, _Training]]] = {}
        for lane, training in self._in_steps:
            networks, progress = networks_of(training.prepared.spec), training.progress
            program = networks, progress.objective, progress.optimizer, training.resident.shapes
            groups.setdefault(program, []).append((lane, training))
        dispatched: list[tuple[_Lane, _Training, tuple[TrainState, Losses]]] = []
        for group in groups.values():
            lanes, trainings = zip(*group, strict=True)
            made = self._attempt(lanes, _dispatch, trainings) or ()
            dispatched += [(*pair, of) for pair, of in zip(group, made, strict=False)]
        for lane, training, made in dispatched:
            loss = self._attempt([lane], training.progress.record, *made)
            if loss is not None:
                self.tell(
                    lane.run.name, Status("training", training.progress.step, f"loss {loss:.4f}")
                )

    def _close_all(self) -> None:
        """Saves what is in its steps; what is before or after them is left to end."""
        for lane, training in self._in_steps:
            if training.progress.next_count and self._attempt([lane], _save, training):
                self._end(lane, Status("stopped", training.progress.step))

    def _attempt(self, lanes: Sequence[_Lane], work: Callable[..., Any], *arguments: Any) -> Any:
        """What `work` returns; None, and the lanes are given up, if it raises something."""
        try:
            return work(*arguments)
        except Exception as error:  # whatever it is, the others are not to suffer from it
            if not isinstance(error, _EXPECTED):
                traceback.print_exc()
            message = _in_a_line(error)
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
            except Exception as error:  # a checkpoint that could not be written after all
                self.failed.setdefault(lane.run.name, _in_a_line(error))
        lane.lock.release()
        if status is not None:
            self.tell(lane.run.name, status)


def _prepare(run: SweepRun, folder: Path, device: Device) -> _Training | Dataset:
    """What a training begins with; its dataset alone if only the evaluation is missing."""
    with jax.default_device(device), ExitStack() as opened:
        dataset = load_configured_dataset(run.config)
        # Of a detector the record is written last.
        if (folder / "detector" / "detector.json").is_file():
            claim_workdir(folder, run.config)
            return dataset
        prepared = prepare_fit(run.config, dataset, folder)
        networks, counts = networks_of(prepared.spec), image_counts(prepared.data)
        progress = opened.enter_context(
            open_training(run.config, networks, counts, workdir=folder, beside_others=True)
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
        finish_fit(run.config, training.dataset, training.prepared, state)
    training.opened.close()
    return _evaluate(folder, device, training.dataset)


def _evaluate(folder: Path, device: Device, dataset: Dataset) -> str:
    with jax.default_device(device):
        evaluate_workdir(folder, dataset)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return figure_of(folder)


def figure_of(folder: Path) -> str:
    """The image AU-ROC of a training that is done, '' where its dataset has none."""
    try:
        found = json.loads((folder / METRICS_FILE).read_text())["detector"]["image_auroc"]
    except FileNotFoundError:
        return ""
    return "" if found is None else f"image AU-ROC {found:.4f}"


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, _EXPECTED):
        return text
    return f"{type(error).__name__}: {text[:300]}"
