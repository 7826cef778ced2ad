"""The loop of phase 2: dispatches of many steps, checkpoints, progress, a clean stop."""

import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
import optax
from jaxtyping import Float, Int, PyTree
from tqdm import tqdm

from efficientad_jax.checkpoints import open_checkpoints
from efficientad_jax.configuration import Config
from efficientad_jax.errors import DivergenceError, StoppedError
from efficientad_jax.interruption import interruption
from efficientad_jax.optimizer import adam_with_l2, step_decay
from efficientad_jax.scalars import scalar_log
from efficientad_jax.training import (
    Networks,
    Objective,
    TrainData,
    TrainState,
    create_train_state,
    train_steps,
)


def run_training(
    config: Config,
    networks: Networks,
    teacher_params: PyTree,
    data: TrainData,
    workdir: Path,
) -> TrainState:
    """Trains for `config.train.steps`, going on from the newest whole checkpoint in `workdir`.

    Which images a step sees, and how they are changed, follows from `config.seed` and the number
    of the step, which is the random state and the position in the data: a run that was stopped
    or killed ends as one that was not, bit for bit.

    Args:
      config: see `configs/elpv.py`; read are `seed`, `losses` and `train`.
      networks: their modules.
      teacher_params: of the normalised teacher.
      data: resident images.
      workdir: for checkpoints and TensorBoard files.

    Raises:
      StoppedError: Ctrl-C or SIGTERM stopped the run before its last step; its state is saved.
      DivergenceError: a loss or a parameter is not finite. The checkpoint before it stays.
      InputError: a checkpoint cannot be written, or none of those there is whole.
      OSError: the TensorBoard file cannot be written.
    """
    train = config.train
    objective = Objective(**config.losses)
    schedule = _schedule(config)
    optimizer = adam_with_l2(schedule, train.weight_decay)
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    height, width = data.images.shape[1:3]
    state = create_train_state(init_key, networks, optimizer, (height, width))

    with (
        open_checkpoints(workdir / "checkpoints", train.checkpoints_kept) as checkpoints,
        interruption() as interrupted,
        scalar_log(workdir / "tensorboard") as write_scalars,
    ):
        restored = checkpoints.restore_latest(state)
        state = state if restored is None else restored
        step = saved = int(state.step)
        since_saved: list[np.ndarray] = []
        with tqdm(total=train.steps, initial=step, unit="step", file=sys.stderr) as progress:
            while step < train.steps and not interrupted():
                count = min(train.steps_per_dispatch, train.steps - step)
                state, losses = train_steps(
                    networks,
                    objective,
                    optimizer,
                    teacher_params,
                    data,
                    state,
                    _chosen(data.images, config.seed, 0, step, count, train.batch_size),
                    _chosen(data.pretraining_images, config.seed, 1, step, count, train.batch_size),
                    train_key,
                )
                by_name = losses._asdict() | {"total": losses.total}
                by_name = {name: np.asarray(loss) for name, loss in by_name.items()}
                _check_finite(by_name, step)
                step += count
                means = {f"loss/{name}": float(loss.mean()) for name, loss in by_name.items()}
                write_scalars(means | {"learning_rate": np.asarray(schedule(step)).item()}, step)
                since_saved.append(by_name["total"])
                progress.update(count)
                progress.set_postfix(loss=f"{by_name['total'].mean():.4f}")
                if step - saved >= train.checkpoint_every:
                    checkpoints.save(step, state, float(np.concatenate(since_saved).mean()))
                    saved, since_saved = step, []
        if step > saved:
            checkpoints.save(step, state, float(np.concatenate(since_saved).mean()))
    if step < train.steps:
        raise StoppedError(interrupted(), step)
    return state


def saved_students(
    workdir: Path, config: Config, networks: Networks, input_size: tuple[int, int]
) -> Iterator[tuple[int, PyTree]]:
    """The student's parameters in each checkpoint of `run_training` that is still there, by step.

    Training keeps the newest `config.train.checkpoints_kept`.
    """
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return
    optimizer = adam_with_l2(_schedule(config), config.train.weight_decay)
    state = create_train_state(jax.random.key(0), networks, optimizer, input_size)
    with open_checkpoints(folder.absolute()) as checkpoints:
        for step in checkpoints.steps:
            yield step, checkpoints.restore(step, state).params["student"]


def _schedule(config: Config) -> optax.Schedule:
    train = config.train
    return step_decay(train.learning_rate, train.steps, train.decay_at, train.decay_factor)


def _chosen(
    images: object, seed: int, stream: int, first_step: int, steps: int, batch_size: int
) -> Int[np.ndarray, "{steps} {batch_size}"]:
    """Which of the images each step takes: every image once, in a new order, again and again."""
    count = 1 if images is None else len(images)  # pyright: ignore[reportArgumentType]
    positions = np.arange(first_step * batch_size, (first_step + steps) * batch_size)
    indices = [_order(seed, stream, int(p) // count, count)[p % count] for p in positions]
    return np.array(indices, np.int32).reshape(steps, batch_size)


@lru_cache(maxsize=8)
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
