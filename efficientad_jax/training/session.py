"""One training between its dispatches: what the next steps take, what is kept of the last ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
import optax
from jaxtyping import Float, Int

from efficientad_jax.config import Config, TrainConfig
from efficientad_jax.errors import DivergenceError
from efficientad_jax.networks.model import Networks
from efficientad_jax.optimizer import adam_with_l2, step_decay
from efficientad_jax.runs.checkpoints import Checkpoints, open_checkpoints
from efficientad_jax.runs.tensorboard import WriteScalars, scalar_log
from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.training.losses import Losses
from efficientad_jax.training.step import TrainData, TrainState, create_train_state


class TrainingRun:
    """A training's state and what is written of it; made by `open_training`.

    Which images a step sees, and how they are changed, follows from the seed and the number of
    the step, which is the random state and the position in the data: a run that was stopped or
    killed ends as one that was not, bit for bit.

    Attributes:
      objective: which losses it minimises.
      optimizer: the same object for all runs of the same settings, as compiled programs need it.
      key: of the whole training.
      steps: how many steps it is to make.
      state: after the last step.
    """

    def __init__(
        self,
        config: Config,
        counts: tuple[int, int],
        state: TrainState,
        checkpoints: Checkpoints,
        write_scalars: WriteScalars,
    ) -> None:
        self.objective = config.losses
        self.optimizer = configured_optimizer(config.train)
        self.key = jax.random.split(jax.random.key(config.seed))[1]
        self.steps = config.train.steps
        restored = checkpoints.restore_latest(state)
        self.state = state if restored is None else restored
        self._seed = config.seed
        self._train = config.train
        self._schedule = step_decay(*_rates(config.train))
        self._counts = counts
        self._checkpoints = checkpoints
        self._write_scalars = write_scalars
        self.step = self._saved = int(self.state.step)
        self._since_saved: list[np.ndarray] = []

    @property
    def next_count(self) -> int:
        """How many steps the next dispatch has, 0 at the end."""
        return min(self._train.steps_per_dispatch, self.steps - self.step)

    def chosen(self, count: int) -> tuple[Int[np.ndarray, "k b"], Int[np.ndarray, "k b"]]:
        """Which images, and which pretraining images, the next `count` steps take."""
        batch = self._train.batch_size
        own, pretraining = (
            _chosen(images, self._seed, stream, self.step, count, batch)
            for stream, images in enumerate(self._counts)
        )
        return own, pretraining

    def record(self, state: TrainState, losses: Losses) -> float:
        """Takes what a dispatch made: writes its scalars, and a checkpoint when one is due.

        Returns:
          The mean of the total loss over its steps.

        Raises:
          DivergenceError: a loss or a parameter is not finite. The checkpoint before it stays.
          InputError: the checkpoint cannot be written.
          OSError: the TensorBoard file cannot be written.
        """
        by_name = losses._asdict() | {"total": losses.total}
        by_name = {name: np.asarray(loss) for name, loss in by_name.items()}
        _check_finite(by_name, self.step)
        self.state = state
        self.step += len(by_name["total"])
        means = {f"loss/{name}": float(loss.mean()) for name, loss in by_name.items()}
        rate = np.asarray(self._schedule(self.step)).item()
        self._write_scalars(means | {"learning_rate": rate}, self.step)
        self._since_saved.append(by_name["total"])
        if self.step - self._saved >= self._train.checkpoint_every:
            self.save()
        return means["loss/total"]

    def save(self) -> None:
        """Starts writing a checkpoint, unless nothing has happened since the last.

        Raises:
          DivergenceError: a parameter is not finite.
          InputError: it cannot be written.
        """
        if self.step > self._saved:
            loss = float(np.concatenate(self._since_saved).mean())
            self._checkpoints.save(self.step, self.state, loss)
            self._saved, self._since_saved = self.step, []


@contextmanager
def open_training(
    config: Config,
    networks: Networks,
    counts: tuple[int, int],
    workdir: Path,
    beside_others: bool = False,
) -> Iterator[TrainingRun]:
    """Begins a training, or goes on from the newest whole checkpoint in `workdir`.

    On leaving, waits until all checkpoints are on disk.

    Args:
      config: of the training; read are `seed`, `model`, `losses` and `train`.
      networks: their modules.
      counts: `image_counts` of the data that it chooses from.
      workdir: for checkpoints and TensorBoard files.
      beside_others: see `open_checkpoints`.

    Raises:
      InputError: a checkpoint cannot be written, or none of those there is whole.
      OSError: the TensorBoard file cannot be written.
    """
    init_key = jax.random.split(jax.random.key(config.seed))[0]
    optimizer = configured_optimizer(config.train)
    state = create_train_state(init_key, networks, optimizer, config.model.input_size)
    keep = config.train.checkpoints_kept
    with (
        open_checkpoints(Workdir(workdir).checkpoints, keep, beside_others) as checkpoints,
        scalar_log(Workdir(workdir).tensorboard) as write_scalars,
    ):
        yield TrainingRun(config, counts, state, checkpoints, write_scalars)


def image_counts(data: TrainData) -> tuple[int, int]:
    """How many images and pretraining images there are; 1 where there are none of the latter."""
    others = data.pretraining_images
    return len(data.images), 1 if others is None else len(others)


def configured_optimizer(train: TrainConfig) -> optax.GradientTransformation:
    """The optimizer of a training; the same object for the same values."""
    return _optimizer(_rates(train), train.weight_decay)


@lru_cache(maxsize=8)
def _optimizer(
    rates: tuple[float, int, float, float], weight_decay: float
) -> optax.GradientTransformation:
    return adam_with_l2(step_decay(*rates), weight_decay)


def _rates(train: TrainConfig) -> tuple[float, int, float, float]:
    """What `step_decay` takes."""
    return train.learning_rate, train.steps, train.decay_at, train.decay_factor


def _chosen(
    count: int, seed: int, stream: int, first_step: int, steps: int, batch_size: int
) -> Int[np.ndarray, "{steps} {batch_size}"]:
    """Which of the images each step takes: every image once, in a new order, again and again."""
    positions = np.arange(first_step * batch_size, (first_step + steps) * batch_size)
    indices = [_order(seed, stream, int(p) // count, count)[p % count] for p in positions]
    return np.array(indices, np.int32).reshape(steps, batch_size)


@lru_cache(maxsize=32)
def _order(seed: int, stream: int, epoch: int, count: int) -> Int[np.ndarray, " {count}"]:
    return np.random.default_rng((seed, stream, epoch)).permutation(count)


def _check_finite(losses: Mapping[str, Float[np.ndarray, " k"]], first_step: int) -> None:
    for name, values in losses.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise DivergenceError(
                f"training: the loss '{name}' is {values[bad[0]]} at step "
                f"{first_step + int(bad[0]) + 1}, expected a finite number; the last checkpoint "
                "is kept; try a lower config.train.learning_rate"
            )
