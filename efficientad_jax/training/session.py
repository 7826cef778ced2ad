"""One training between its dispatches: its next inputs, its checkpoints and its log."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
import optax
from jaxtyping import Int, PyTree

from efficientad_jax.config import Config, TrainConfig
from efficientad_jax.networks.model import Networks
from efficientad_jax.optimizer import adam_with_l2, step_decay
from efficientad_jax.runs.checkpoints import Checkpoints, open_checkpoints
from efficientad_jax.runs.session import Session
from efficientad_jax.runs.tensorboard import WriteScalars, scalar_log
from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.training.losses import Losses
from efficientad_jax.training.selection import (
    Measure,
    Selection,
    is_measured,
    last_uncounted_step,
    selection_of_notes,
)
from efficientad_jax.training.step import TrainState, create_train_state


class TrainingRun(Session[TrainState]):
    """A training's state, its checkpoints and its log. `open_training` makes it.

    The seed and the number of a step determine which images the step takes and how they are
    augmented. A run that was stopped or killed therefore ends bit for bit like one that was not.

    Attributes:
      objective: which losses are minimized.
      optimizer: the same object for all runs with equal settings, because compiled programs are
        cached by it.
      key: random key of the whole training.
      proxy_auroc: the last measurement, None before the first of this process.
    """

    def __init__(
        self,
        config: Config,
        counts: tuple[int, int],
        state: TrainState,
        *,
        checkpoints: Checkpoints,
        write_scalars: WriteScalars,
        measure: Measure | None = None,
    ) -> None:
        """Restores the newest checkpoint. Arguments are those of `open_training` and `Session`."""
        super().__init__(
            state, config.train.steps, checkpoints=checkpoints, write_scalars=write_scalars
        )
        self.objective = config.losses
        self.optimizer = configured_optimizer(config.train)
        self.key = jax.random.split(jax.random.key(config.seed))[1]
        self._seed = config.seed
        self._train = config.train
        self._schedule = step_decay(
            config.train.learning_rate,
            config.train.steps,
            config.train.decay_at,
            decay_factor=config.train.decay_factor,
        )
        self._counts = counts
        self._unsaved_losses: list[np.ndarray] = []
        self._measure = measure
        self.proxy_auroc: float | None = None
        chooses = measure is not None and self._train.patience > 0
        self._selection = Selection() if chooses else None
        if chooses and self.step:
            self._selection = selection_of_notes(checkpoints.notes(self.step), self._train)

    @property
    def is_over(self) -> bool:
        """Whether there are no more steps to make, because of their number or of patience."""
        waited = 0 if self._selection is None else self._selection.waited
        return self.step >= self.steps or 0 < self._train.patience <= waited

    def count_after(self, step: int) -> int:
        """Number of steps of the dispatch after `step` steps, 0 at the end."""
        return min(self._train.steps_per_dispatch, self.steps - step)

    def image_indices(
        self, step: int, count: int
    ) -> tuple[Int[np.ndarray, "k b"], Int[np.ndarray, "k b"]]:
        """Indices of the images and photographs that the `count` steps after `step` steps take."""
        images, pretraining = (
            image_indices(
                available,
                self._train.batch_size,
                range(step, step + count),
                seed=self._seed,
                stream=stream,
            )
            for stream, available in enumerate(self._counts)
        )
        return images, pretraining

    def record(self, state: TrainState, losses: Losses) -> float:
        """Takes the result of a dispatch: logs it, measures it and saves it when that is due.

        With patience each best state so far is saved. Its checkpoint holds the measurement: a run
        that is killed before it is written measures the same state again.

        Returns:
          The mean over the steps of the total loss.

        Raises:
          DivergenceError: a loss, a parameter or a map is not finite. The checkpoint before it is
            kept.
          InputError: the checkpoint cannot be written, or a map has no scale.
          OSError: the TensorBoard file cannot be written.
        """
        by_name = losses._asdict() | {"total": losses.total}
        by_name = {name: np.asarray(loss) for name, loss in by_name.items()}
        total = by_name["total"]
        rate = np.asarray(self._schedule(self.step + len(total))).item()
        measure = self._measure if self._is_measured(len(total)) else None
        means = self._advance(state, by_name, {"learning_rate": rate})
        self._unsaved_losses.append(total)
        is_best = measure is not None and self._take_measurement(measure)
        if is_best or self.unsaved_steps >= self._train.checkpoint_every:
            self.save()
        return means["total"]

    def _is_measured(self, count: int) -> bool:
        """Whether the state after the next `count` steps is measured."""
        return self._measure is not None and is_measured(self._train, self.step, count)

    def _take_measurement(self, measure: Measure) -> bool:
        """Measures and logs the state; returns whether it is the best so far and is to be kept."""
        measured = measure(self.state.params)
        self.proxy_auroc = measured.overall
        self._write_scalars(measured.scalars(), self.step)
        if self._selection is None or self.step <= last_uncounted_step(self._train):
            return False
        self._selection = self._selection.after(measured.overall, self.step)
        return self._selection.step == self.step

    def is_state_needed(self, count: int) -> bool:
        """Whether the state after the next `count` steps is the last, or is saved or measured."""
        is_last = self.step + count >= self.steps
        is_saved = self.unsaved_steps + count >= self._train.checkpoint_every
        return is_last or is_saved or self._is_measured(count)

    def result(self) -> TrainState:
        """The state that becomes the detector: with patience the best one, else the last one.

        Raises:
          InputError: the best one's checkpoint is damaged.
        """
        if self._selection is None or self._selection.step in (0, self.step):
            return self.state
        return self._checkpoints.restore_kept(self._selection.step, self.state)

    def save(self) -> None:
        """Starts to write a checkpoint, unless the current step has one.

        Raises:
          DivergenceError: a parameter is not finite.
          InputError: it cannot be written.
        """
        if self.unsaved_steps:
            selection = self._selection or Selection()
            self._save(
                self.state,
                float(np.concatenate(self._unsaved_losses).mean()),
                notes=selection._asdict() if selection.step else None,
                kept_step=selection.step or None,
            )
            self._unsaved_losses = []


@contextmanager
def open_training(
    config: Config,
    networks: Networks,
    counts: tuple[int, int],
    *,
    workdir: Path,
    initial_params: dict[str, PyTree] | None = None,
    measure: Measure | None = None,
) -> Iterator[TrainingRun]:
    """Starts a training, or resumes it from the newest intact checkpoint in `workdir`.

    On exit it waits until all checkpoints are on disk.

    Args:
      config: of the training; `seed`, `model`, `losses` and `train` are read.
      networks: the modules.
      counts: numbers of images and of photographs for the penalty, at least 1 each.
      workdir: for checkpoints and TensorBoard files.
      initial_params: of student and autoencoder, None for random ones. They count only where there
        is no checkpoint.
      measure: see `run_training`.

    Raises:
      InputError: a checkpoint cannot be written, or there are checkpoints and all are damaged.
      OSError: the TensorBoard file cannot be written.
    """
    init_key = jax.random.split(jax.random.key(config.seed))[0]
    optimizer = configured_optimizer(config.train)
    state = create_train_state(init_key, networks, optimizer, input_size=config.model.input_shape)
    if initial_params is not None:
        params = state.params | initial_params
        state = state._replace(params=params, opt_state=optimizer.init(params))
    keep = config.train.checkpoints_kept
    with (
        open_checkpoints(Workdir(workdir).checkpoints, keep) as checkpoints,
        scalar_log(Workdir(workdir).tensorboard) as write_scalars,
    ):
        yield TrainingRun(
            config,
            counts,
            state,
            checkpoints=checkpoints,
            write_scalars=write_scalars,
            measure=measure,
        )


def configured_optimizer(train: TrainConfig) -> optax.GradientTransformation:
    """The optimizer of a training; the same object for the same values."""
    return _optimizer(
        train.learning_rate,
        train.steps,
        train.decay_at,
        decay_factor=train.decay_factor,
        weight_decay=train.weight_decay,
    )


@lru_cache(maxsize=8)
def _optimizer(
    learning_rate: float, steps: int, decay_at: float, *, decay_factor: float, weight_decay: float
) -> optax.GradientTransformation:
    schedule = step_decay(learning_rate, steps, decay_at, decay_factor=decay_factor)
    return adam_with_l2(schedule, weight_decay)


def image_indices(
    images: int, batch_size: int, steps: range, *, seed: int, stream: int
) -> Int[np.ndarray, "k {batch_size}"]:
    """Indices of the images of each step: epoch after epoch, each in a new random order.

    Args:
      images: number of images.
      batch_size: images per step.
      steps: numbers of the steps.
      seed: of the training.
      stream: 0 for the training images, 1 for the pretraining images; their orders are
        independent.
    """
    positions = np.arange(steps.start * batch_size, steps.stop * batch_size)
    indices = [
        _epoch_order(seed, stream, int(p) // images, images=images)[p % images] for p in positions
    ]
    return np.array(indices, np.int32).reshape(len(steps), batch_size)


@lru_cache(maxsize=32)
def _epoch_order(
    seed: int, stream: int, epoch: int, *, images: int
) -> Int[np.ndarray, " {images}"]:
    return np.random.default_rng((seed, stream, epoch)).permutation(images)
