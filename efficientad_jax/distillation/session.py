"""One distillation between its dispatches: its networks, checkpoints, log and throughput."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from efficientad_jax.config import DistillationConfig
from efficientad_jax.distillation.batches import StepInputs
from efficientad_jax.distillation.sharding import first_replica, replicate
from efficientad_jax.distillation.step import DistillState, create_distill_state, held_out_loss
from efficientad_jax.distillation.view_pool import ViewPool
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.optimizer import adam_with_l2, warmup_cosine, warmup_stable_decay
from efficientad_jax.runs.checkpoints import Checkpoints, open_checkpoints
from efficientad_jax.runs.processes import is_first_process
from efficientad_jax.runs.session import Session
from efficientad_jax.runs.tensorboard import WriteScalars, scalar_log
from efficientad_jax.runs.workdir import Workdir


class Pace(NamedTuple):
    """Sums over the steps of a run, without the first dispatch, which compiles.

    Attributes:
      images: number of images that the steps have seen.
      making: seconds that the input pipeline by itself needs for them.
      waiting: seconds that the steps waited for them.
      stepping: seconds of the steps themselves.
    """

    images: int = 0
    making: float = 0.0
    waiting: float = 0.0
    stepping: float = 0.0


def rates(pace: Pace) -> dict[str, float]:
    """Images per second of the input and of the steps, each alone, and the fraction of time waited.

    Empty for a run of one dispatch; without the input's rate if the accelerator makes the images.
    """
    if not pace.images:
        return {}
    steps = {
        "images_per_second/steps": pace.images / pace.stepping,
        "waiting": pace.waiting / (pace.waiting + pace.stepping),
    }
    return steps | ({"images_per_second/input": pace.images / pace.making} if pace.making else {})


def summary(pace: Pace) -> str:
    """The rates as one line; '' for a run of one dispatch."""
    if not pace.images:
        return ""
    values = rates(pace)
    line = f"the steps see {values['images_per_second/steps']:.1f} images/s"
    if pace.making:
        line += f", the input by itself makes {values['images_per_second/input']:.1f}"
    return line + f"; waited {100 * values['waiting']:.1f} % of the time"


class DistillationRun(Session[DistillState]):
    """A distillation's state, its checkpoints and its log. `open_distillation` makes it.

    A run that was stopped or killed ends bit for bit like one that was not.

    Attributes:
      network: the PDN that learns.
      optimizer: of the run.
      pace: throughput of this run's steps and of their input.
    """

    _title = "distillation"
    _rate_field = "config.learning_rate"

    def __init__(
        self,
        config: DistillationConfig,
        held_out: ViewPool,
        params: PyTree | None,
        *,
        checkpoints: Checkpoints,
        write_scalars: WriteScalars,
    ) -> None:
        """Restores the newest checkpoint and copies the state to all devices.

        Arguments are those of `open_distillation` and `Session`.
        """
        # With the padding of Algorithm 3 the PDN has targets at every position of a whole view. A
        # crop has targets only where its patches lie inside.
        self.network = PatchDescriptionNetwork(
            config.size, config.channels, padding=config.pool_views == 0, dtype=config.dtype
        )
        self.optimizer = adam_with_l2(learning_rate(config), config.weight_decay)
        state = create_distill_state(jax.random.key(config.seed), self.network, self.optimizer)
        if params is not None:
            state = state._replace(params=params)
        super().__init__(state, config.steps, checkpoints=checkpoints, write_scalars=write_scalars)
        self.state = replicate(self.state)
        self.pace = Pace()
        self._config = config
        self._held_out = held_out
        self._held_out_loss: float | None = None
        self._compiled = False
        self._recorded_at = time.perf_counter()

    def count_after(self, step: int) -> int:
        """Number of steps of the dispatch after `step` steps, 0 at the end.

        A round ends with a dispatch.
        """
        per_round = self._config.steps_per_round
        round_end = (step // per_round + 1) * per_round
        return min(self._config.steps_per_dispatch, min(round_end, self.steps) - step)

    def is_checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint is written after `step` steps."""
        return step % self._config.steps_per_round == 0 or step >= self.steps

    def record(self, state: DistillState, losses: Float[Array, "d k"], inputs: StepInputs) -> float:
        """Takes the result of a dispatch: logs it, and saves a checkpoint at the end of a round.

        Args:
          state: after the steps, a copy for each device.
          losses: of the steps, a copy for each device.
          inputs: of the steps.

        Returns:
          The mean loss of the steps.

        Raises:
          DivergenceError: a loss or a parameter is not finite. The checkpoint before it is kept.
          InputError: the checkpoint cannot be written.
          OSError: the TensorBoard file cannot be written.
        """
        step_losses = np.asarray(first_replica(losses))  # waits for the steps
        if self._compiled:
            self.pace = Pace(
                self.pace.images + len(step_losses) * self._config.batch_size,
                self.pace.making + inputs.making,
                self.pace.waiting + inputs.waiting,
                self.pace.stepping + time.perf_counter() - self._recorded_at - inputs.waiting,
            )
        self._compiled = True
        means = self._advance(state, {"train": step_losses}, {})
        if self.is_checkpoint_due(self.step):
            self.save()
        self._recorded_at = time.perf_counter()
        return means["train"]

    def save(self) -> None:
        """Starts to write a checkpoint, unless the current step has one; logs the held-out loss.

        Raises:
          DivergenceError: a parameter is not finite.
          InputError: it cannot be written.
          OSError: the TensorBoard file cannot be written.
        """
        if not self.unsaved_steps:
            return
        state = first_replica(self.state)
        self._held_out_loss = self._compute_held_out_loss(state.params)
        self._save(state, self._held_out_loss)
        self._write_scalars({"loss/held_out": self._held_out_loss} | rates(self.pace), self.step)

    def result(self) -> tuple[PyTree, float]:
        """The parameters after the last step and their loss on the held-out views."""
        params = first_replica(self.state).params
        if self._held_out_loss is None:  # the run was resumed after its last step
            self._held_out_loss = self._compute_held_out_loss(params)
        return params, self._held_out_loss

    def _compute_held_out_loss(self, params: PyTree) -> float:
        unpadded = PatchDescriptionNetwork(self._config.size, self._config.channels)
        return held_out_loss(unpadded, params, self._held_out)


@contextmanager
def open_distillation(
    config: DistillationConfig,
    workdir: Path,
    *,
    held_out: ViewPool,
    params: PyTree | None,
) -> Iterator[DistillationRun]:
    """Starts a distillation, or resumes it from the newest intact checkpoint in `workdir`.

    On exit it waits until all checkpoints are on disk.

    Args:
      config: of the distillation.
      workdir: for checkpoints and TensorBoard files.
      held_out: the views that are never trained on.
      params: parameters to start from, None for random ones.

    Raises:
      InputError: a checkpoint cannot be written, or there are checkpoints and all are damaged.
      OSError: the TensorBoard file cannot be written.
    """
    with (
        open_checkpoints(Workdir(workdir).checkpoints) as checkpoints,
        scalar_log(Workdir(workdir).tensorboard, enabled=is_first_process()) as write_scalars,
    ):
        yield DistillationRun(
            config, held_out, params, checkpoints=checkpoints, write_scalars=write_scalars
        )


def learning_rate(config: DistillationConfig) -> optax.ScalarOrSchedule:
    """The rate of every step, or the constant one."""
    rate, steps, warmup = config.learning_rate, config.steps, config.warmup_steps
    match config.schedule:
        case "warmup_cosine":
            return warmup_cosine(rate, steps, warmup)
        case "warmup_stable_decay":
            return warmup_stable_decay(rate, steps, warmup, decay_steps=config.decay_steps)
        case _:
            return rate
