"""The loop of phase 2: dispatches of several steps each, with a progress bar and a clean stop."""

import math
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int, PyTree, UInt8
from tqdm import tqdm

from efficientad_jax.config import Config
from efficientad_jax.data.pretraining_images import PretrainingImages
from efficientad_jax.errors import StoppedError
from efficientad_jax.networks.model import Networks
from efficientad_jax.runs.checkpoints import open_checkpoints
from efficientad_jax.runs.signals import interruption
from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.training.session import TrainingRun, configured_optimizer, open_training
from efficientad_jax.training.step import TrainData, TrainState, create_train_state, train_steps


def run_training(
    config: Config,
    networks: Networks,
    teacher_params: PyTree,
    *,
    data: TrainData,
    workdir: Path,
    photographs: PretrainingImages | None = None,
    initial_params: dict[str, PyTree] | None = None,
    on_steps: Callable[[int, float], None] | None = None,
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
      on_steps: called at the start and after each dispatch with the number of steps done and the
        mean loss of the dispatch (NaN at the start); None shows a progress bar.

    Raises:
      StoppedError: Ctrl-C or SIGTERM stopped the run before its last step; its state is saved.
      DivergenceError: a loss or a parameter is not finite. The checkpoint before it is kept.
      InputError: a checkpoint cannot be written, or there are checkpoints and all are damaged.
      OSError: the TensorBoard file cannot be written.
    """
    counts = len(data.images), 1 if photographs is None else photographs.total
    with (
        open_training(
            config, networks, counts, workdir=workdir, initial_params=initial_params
        ) as run,
        closing(_dispatches(run, photographs)) as dispatches,
        interruption() as interrupted,
        nullcontext(on_steps) if on_steps else _progress_bar(run.step, run.steps) as report,
    ):
        report(run.step, math.nan)
        fixed = networks, run.objective, run.optimizer
        for indices, pretraining_images in dispatches:
            if interrupted():
                break
            state, losses = train_steps(
                *fixed,
                teacher_params=teacher_params,
                data=data._replace(pretraining_images=pretraining_images),
                state=run.state,
                indices=indices,
                pretraining_indices=np.arange(indices.size, dtype=np.int32).reshape(indices.shape),
                key=run.key,
                crop=config.crop_size,
            )
            loss = run.record(state, losses)
            report(run.step, loss)
        run.save()
    if run.step < run.steps:
        raise StoppedError(interrupted(), run.step)
    return run.state


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
def _progress_bar(step: int, steps: int) -> Iterator[Callable[[int, float], None]]:
    with tqdm(total=steps, initial=step, unit="step", file=sys.stderr) as bar:

        def report(step: int, loss: float) -> None:
            if not math.isnan(loss):
                bar.update(step - bar.n)
                bar.set_postfix(loss=f"{loss:.4f}")

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
