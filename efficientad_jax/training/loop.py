"""The loop of phase 2: dispatches of many steps, progress, a clean stop."""

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from jaxtyping import PyTree
from tqdm import tqdm

from efficientad_jax.config import Config
from efficientad_jax.errors import StoppedError
from efficientad_jax.networks.model import Networks
from efficientad_jax.runs.checkpoints import open_checkpoints
from efficientad_jax.runs.signals import interruption
from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.training.session import configured_optimizer, image_counts, open_training
from efficientad_jax.training.step import TrainData, TrainState, create_train_state, train_steps


def run_training(
    config: Config,
    networks: Networks,
    teacher_params: PyTree,
    data: TrainData,
    workdir: Path,
) -> TrainState:
    """Trains for `config.train.steps`, going on from the newest whole checkpoint in `workdir`.

    Args:
      config: of the training; read are `seed`, `losses` and `train`.
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
    with (
        open_training(config, networks, image_counts(data), workdir) as run,
        interruption() as interrupted,
        tqdm(total=run.steps, initial=run.step, unit="step", file=sys.stderr) as progress,
    ):
        while run.next_count and not interrupted():
            count = run.next_count
            state, losses = train_steps(
                networks,
                run.objective,
                run.optimizer,
                teacher_params,
                data,
                run.state,
                *run.chosen(count),
                run.key,
            )
            loss = run.record(state, losses)
            progress.update(count)
            progress.set_postfix(loss=f"{loss:.4f}")
        run.save()
    if run.step < run.steps:
        raise StoppedError(interrupted(), run.step)
    return run.state


def saved_students(
    workdir: Path, config: Config, networks: Networks, input_size: tuple[int, int]
) -> Iterator[tuple[int, PyTree]]:
    """The student's parameters in each checkpoint of `run_training` that is still there, by step.

    Training keeps the newest `config.train.checkpoints_kept`.
    """
    folder = Workdir(workdir).checkpoints
    if not folder.is_dir():
        return
    optimizer = configured_optimizer(config.train)
    state = create_train_state(jax.random.key(0), networks, optimizer, input_size)
    with open_checkpoints(folder.absolute()) as checkpoints:
        for step in checkpoints.steps:
            yield step, checkpoints.restore(step, state).params["student"]
