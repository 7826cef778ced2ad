"""The common part of both trainings: a state that is restored, logged and saved."""

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, PyTree

from efficientad_jax.errors import DivergenceError
from efficientad_jax.runs.checkpoints import Checkpoints
from efficientad_jax.runs.tensorboard import WriteScalars


@runtime_checkable
class _HasStep(Protocol):
    """A state that counts its steps."""

    @property
    def step(self) -> Any: ...


State = TypeVar("State", bound=_HasStep)


class Session(Generic[State]):
    """A run between its dispatches. It starts from the newest intact checkpoint, if there is one.

    Attributes:
      state: the state after the last step.
      step: number of steps done.
      steps: number of steps of the whole run.
    """

    # Names of the run and of its learning rate in error messages.
    _title = "training"
    _rate_field = "config.train.learning_rate"

    def __init__(
        self, state: State, steps: int, *, checkpoints: Checkpoints, write_scalars: WriteScalars
    ) -> None:
        """Restores the newest checkpoint.

        Args:
          state: the state to start from if there is no checkpoint.
          steps: number of steps of the whole run.
          checkpoints: the checkpoints of this run.
          write_scalars: see `scalar_log`.

        Raises:
          InputError: there are checkpoints, but all of them are damaged.
        """
        restored = checkpoints.restore_latest(state)
        self.state: State = state if restored is None else restored
        self.steps = steps
        self.step = self._saved_step = int(self.state.step)
        self._checkpoints = checkpoints
        self._write_scalars = write_scalars

    @property
    def unsaved_steps(self) -> int:
        """Number of steps since the last checkpoint."""
        return self.step - self._saved_step

    def _advance(
        self,
        state: State,
        losses: Mapping[str, Float[np.ndarray, " k"]],
        scalars: Mapping[str, float],
    ) -> dict[str, float]:
        """Replaces the state by the one after `k` more steps and logs their mean losses.

        Args:
          state: the state after the steps.
          losses: the loss of each step, by name.
          scalars: further values to log.

        Returns:
          The mean of each loss, by name.

        Raises:
          DivergenceError: a loss is not finite.
          OSError: the TensorBoard file cannot be written.
        """
        self._check_finite(losses)
        self.state = state
        self.step += len(next(iter(losses.values())))
        means = {name: float(loss.mean()) for name, loss in losses.items()}
        logged = {f"loss/{name}": mean for name, mean in means.items()}
        self._write_scalars(logged | dict(scalars), self.step)
        return means

    def _save(
        self,
        state: PyTree,
        loss: float,
        *,
        notes: Mapping[str, float] | None = None,
        kept_step: int | None = None,
    ) -> None:
        """Starts to write `state` as the checkpoint of the current step; see `Checkpoints.save`.

        Raises:
          DivergenceError: a parameter is not finite.
          InputError: the checkpoint cannot be written.
        """
        self._checkpoints.save(self.step, state, loss, notes=notes, kept_step=kept_step)
        self._saved_step = self.step

    def _check_finite(self, losses: Mapping[str, Float[np.ndarray, " k"]]) -> None:
        for name, values in losses.items():
            bad = np.flatnonzero(~np.isfinite(values))
            if bad.size:
                raise DivergenceError(
                    f"{self._title}: the loss '{name}' is {values[bad[0]]} at step "
                    f"{self.step + int(bad[0]) + 1}, expected a finite number; the last "
                    f"checkpoint is kept; try a lower {self._rate_field}"
                )
