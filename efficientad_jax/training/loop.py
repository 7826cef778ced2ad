"""The loop of phase 2: dispatches of several steps each, with a progress bar and a clean stop."""

import math
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, PyTree, UInt8
from tqdm import tqdm

from efficientad_jax.config import Config
from efficientad_jax.convolution import is_for_accelerator
from efficientad_jax.data.pretraining_images import PretrainingImages
from efficientad_jax.errors import StoppedError
from efficientad_jax.networks.model import Networks
from efficientad_jax.runs.checkpoints import open_checkpoints
from efficientad_jax.runs.profile import Profile, profiling
from efficientad_jax.runs.signals import interruption
from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.training.batch import TrainData
from efficientad_jax.training.losses import Losses
from efficientad_jax.training.selection import Measure
from efficientad_jax.training.session import TrainingRun, configured_optimizer, open_training
from efficientad_jax.training.step import TrainState, create_train_state, train_steps


def run_training(
    config: Config,
    networks: Networks,
    teacher_params: PyTree,
    *,
    data: TrainData,
    workdir: Path,
    photographs: PretrainingImages | None = None,
    initial_params: dict[str, PyTree] | None = None,
    measure: Measure | None = None,
    on_steps: Callable[[int, float], None] | None = None,
    profile_steps: range | None = None,
) -> TrainState:
    """Trains for `config.train.steps`, from the newest intact checkpoint in `workdir` if any.

    Args:
      config: of the training; `seed`, `model`, `losses` and `train` are read.
      networks: the modules.
      teacher_params: parameters of the normalized teacher.
      data: the images, on the device.
      workdir: for checkpoints and TensorBoard files.
      photographs: for the penalty, None without it; those of `data` are not read.
      initial_params: see `open_training`.
      measure: measures the networks every `config.train.proxy_every` steps, None never. With
        `config.train.patience` it chooses the state that is returned, see `training/selection.py`.
      on_steps: called at the start and after each dispatch with the number of steps done and the
        mean loss of the dispatch (NaN at the start); None shows a progress bar.
      profile_steps: steps to record, see `profiling`; None for none.

    Raises:
      StoppedError: Ctrl-C or SIGTERM stopped the run before its last step; its state is saved.
      DivergenceError: a loss or a parameter is not finite. The checkpoint before it is kept.
      InputError: a checkpoint cannot be written, or all, or that of the best state, are damaged.
      OSError: the TensorBoard file cannot be written.
    """
    counts = len(data.images), 1 if photographs is None else photographs.total
    training = open_training(
        config, networks, counts, workdir=workdir, initial_params=initial_params, measure=measure
    )
    with (
        training as run,
        closing(_dispatches(run, photographs)) as dispatches,
        interruption() as interrupted,
        profiling(Workdir(workdir).tensorboard, profile_steps) as profile,
        nullcontext(on_steps) if on_steps else _progress_bar(run) as report,
    ):
        report(run.step, math.nan)
        _make_steps(
            run,
            _compiled_steps(run, networks, teacher_params, config=config),
            ((indices, data._replace(pretraining_images=images)) for indices, images in dispatches),
            ahead=is_for_accelerator(networks.student.convolution),
            interrupted=interrupted,
            profile=profile,
            report=report,
        )
        run.save()
        if not run.is_over:
            raise StoppedError(interrupted(), run.step)
        return run.result()


def _compiled_steps(
    run: TrainingRun,
    networks: Networks,
    teacher_params: PyTree,
    *,
    config: Config,
) -> Callable[..., tuple[TrainState, Losses]]:
    """`train_steps` with all arguments that are the same in every dispatch."""
    return partial(
        train_steps,
        networks,
        run.objective,
        run.optimizer,
        teacher_params=teacher_params,
        key=run.key,
        crop=config.crop_size,
        shift=config.train.shift,
        penalty_crop=config.penalty_crop_size,
        autoencoder_crop=config.autoencoder_crop_size,
    )


def _make_steps(
    run: TrainingRun,
    train: Callable[..., tuple[TrainState, Losses]],
    dispatches: Iterator[tuple[Int[np.ndarray, "k b"], TrainData]],
    *,
    ahead: bool,
    interrupted: Callable[[], int],
    profile: Profile,
    report: Callable[[int, float], None],
) -> None:
    """Makes the steps of all dispatches, until a signal comes or patience ends.

    Args:
      run: takes the results.
      train: `train_steps` without data, state and indices.
      dispatches: which images the steps of each take, and the images.
      ahead: whether the losses of a dispatch are fetched while the next one runs, as on an
        accelerator, except before a checkpoint or a measurement.
      interrupted: whether a signal has come.
      profile: records dispatches.
      report: see `run_training`.
    """
    take = partial(_take_results, run, report)
    state, running = run.state, []
    for indices, data in dispatches:
        if interrupted() or run.is_over:
            break
        profile.before(run.step + sum(dispatch.steps for dispatch in running))
        rows = np.arange(indices.size, dtype=np.int32).reshape(indices.shape)
        state, losses = train(data=data, state=state, indices=indices, pretraining_indices=rows)
        take(running)
        running.append(_Running(state, losses, len(indices)))
        # Checkpoints and measurements need the state, which the next dispatch would overwrite.
        if not ahead or run.is_state_needed(len(indices)) or profile.is_on:
            take(running)
        profile.after(run.step)
    take(running)


class _Running(NamedTuple):
    """The results of a dispatch, which may still run.

    Attributes:
      state: after its steps.
      losses: of its steps.
      steps: their number.
    """

    state: TrainState
    losses: Losses
    steps: int


def _take_results(
    run: TrainingRun, report: Callable[[int, float], None], running: list[_Running]
) -> None:
    """Waits for dispatches and takes their results off the list."""
    while running:
        dispatch = running.pop(0)
        loss = run.record(dispatch.state, dispatch.losses)
        report(run.step, loss)


def _dispatches(
    run: TrainingRun, photographs: PretrainingImages | None
) -> Generator[tuple[Int[np.ndarray, "k b"], UInt8[np.ndarray, "m h w 3"] | None]]:
    """Yields which images the steps of each dispatch take, and their photographs in order.

    The photographs of the next dispatch are read while a dispatch runs.
    """
    with ThreadPoolExecutor(1) as reader:

        def begin(step: int) -> tuple[Int[np.ndarray, "k b"], Future[np.ndarray] | None]:
            indices, due = run.image_indices(step, run.count_after(step))
            return indices, None if photographs is None else reader.submit(photographs.read, due)

        step, upcoming = run.step, begin(run.step)
        while run.count_after(step):
            indices, images = upcoming
            step += len(indices)
            upcoming = begin(step)
            yield indices, None if images is None else images.result()


@contextmanager
def _progress_bar(run: TrainingRun) -> Iterator[Callable[[int, float], None]]:
    with tqdm(total=run.steps, initial=run.step, unit="step", file=sys.stderr) as bar:

        def report(step: int, loss: float) -> None:
            if not math.isnan(loss):
                bar.update(step - bar.n)
                shown = {"loss": f"{loss:.4f}"}
                if run.proxy_auroc is not None:
                    shown["proxy AU-ROC"] = f"{run.proxy_auroc:.4f}"
                bar.set_postfix(shown)

        yield report


def saved_students(
    workdir: Path, config: Config, networks: Networks, *, input_size: tuple[int, int]
) -> Iterator[tuple[int, PyTree]]:
    """The step and the student's parameters of each checkpoint of `run_training` that is kept.

    Training keeps the newest `config.train.checkpoints_kept`.
    """
    folder = Workdir(workdir).checkpoints
    if not folder.is_dir():
        return
    optimizer = configured_optimizer(config.train)
    state = create_train_state(jax.random.key(0), networks, optimizer, input_size=input_size)
    with open_checkpoints(folder.absolute()) as checkpoints:
        for step in checkpoints.steps:
            yield step, checkpoints.restore(step, state).params["student"]
