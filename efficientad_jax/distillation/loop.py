"""The loop of phase 1: from a configuration and photographs to a teacher."""

import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, PyTree
from tqdm import tqdm

from efficientad_jax.config import DistillationConfig, as_dict
from efficientad_jax.convolution import is_for_accelerator
from efficientad_jax.distillation.backbones import Backbone, load_backbone
from efficientad_jax.distillation.batches import (
    Batch,
    StepInputs,
    dispatch_inputs,
    fresh_batches,
    held_out_views,
    images_and_targets,
    images_with_targets,
    pool_batches,
    statistics_views,
)
from efficientad_jax.distillation.device_views import batch_function, load_photographs, view_ids
from efficientad_jax.distillation.photographs import Photographs, open_photographs
from efficientad_jax.distillation.session import DistillationRun, open_distillation, summary
from efficientad_jax.distillation.sharding import local_rows
from efficientad_jax.distillation.step import BatchFunction, DistillState, distill_steps
from efficientad_jax.distillation.target_projection import (
    TargetProjection,
    save_projection,
    saved_projection,
)
from efficientad_jax.distillation.targets import (
    Targets,
    compute_targets,
    fit_target_projection,
    projected_targets,
)
from efficientad_jax.distillation.view_pool import ViewPool, allocate_pool, insert
from efficientad_jax.distillation.views import TARGET_SIZE, VIEW_SIZE
from efficientad_jax.errors import InputError, StoppedError
from efficientad_jax.networks.teacher import Teacher, load_teacher
from efficientad_jax.networks.widening import medium_from_small
from efficientad_jax.runs.processes import any_process, is_first_process, wait_for_processes
from efficientad_jax.runs.profile import Profile, profiling
from efficientad_jax.runs.signals import interruption
from efficientad_jax.runs.workdir import Workdir, claim_workdir

# Fields that do not change the teacher: a run may be resumed with other values.
_IRRELEVANT_FIELDS = ("worker_count",)
_POOL_FOLDER = "pool"


class _Sources(NamedTuple):
    """The inputs that the configuration names.

    Attributes:
      photographs: all photographs.
      held_out: indices of the photographs that measure the loss.
      train: indices of the photographs to learn from.
      backbone: to learn from.
      start: the teacher to start from, None for random parameters.
    """

    photographs: Photographs
    held_out: Int[np.ndarray, " h"]
    train: Int[np.ndarray, " t"]
    backbone: Backbone
    start: Teacher | None


class _Input(NamedTuple):
    """The batches of the steps, and how a step computes images and targets from them.

    Attributes:
      batches: of the steps.
      batch_function: computes images and targets from a batch.
      batch_params: parameters of `batch_function`.
      ahead: whether batches can be taken while the devices compute, see `dispatch_inputs`.
    """

    batches: Generator[Batch]
    batch_function: BatchFunction
    batch_params: PyTree
    ahead: bool


class _Running(NamedTuple):
    """The results of a dispatch, which may still run, and its inputs."""

    state: DistillState
    losses: Array
    inputs: StepInputs


def distill_teacher(
    config: DistillationConfig, workdir: Path, *, profile_steps: range | None = None
) -> Teacher:
    """Distills a PDN (Algorithm 3), from the newest intact checkpoint in `workdir` if any.

    It runs on all devices of all processes, each of which gets an equal share of every batch. The
    batches do not depend on the number of devices.

    The photographs are split by `config.seed`: those held out give the loss that is reported, and
    are never trained on. There is a checkpoint every `config.steps_per_round` steps.

    Args:
      config: of the distillation.
      workdir: for checkpoints, TensorBoard files and, while the run is not finished, the pool of
        views. It is created, or claimed for `config`, after everything that the configuration names
        has been found.
      profile_steps: steps to record, see `profiling`; None for none.

    Raises:
      StoppedError: Ctrl-C or SIGTERM stopped the run before its last step; its state is saved.
      InputError: something that the configuration names cannot be used, there are too few
        photographs, one cannot be read, the batch cannot be divided among the devices, or the
        work directory belongs to another configuration.
      DivergenceError: a loss or a parameter is not finite. The checkpoint before it is kept.
    """
    rows = local_rows(config.batch_size)
    sources = _open_sources(config)
    workdir = _claim_together(workdir, config)
    projection = _load_or_fit_projection(config, workdir, sources)
    targets = projected_targets(sources.backbone, projection)
    held_out = _held_out_pool(config, sources, targets)
    params = None if sources.start is None else sources.start.params
    with open_distillation(config, workdir, held_out=held_out, params=params) as run:
        step_input = _open_input(
            config, workdir, sources, targets=targets, first_step=run.step, rows=rows
        )
        with profiling(Workdir(workdir).tensorboard, profile_steps) as profile:
            signal_number = _run_steps(run, step_input, profile)
    if is_first_process() and summary(run.pace):
        print(summary(run.pace), file=sys.stderr)
    if run.step < run.steps:
        # If another process got the signal, this process has none.
        raise StoppedError(signal_number or signal.SIGTERM, run.step)
    shutil.rmtree(workdir / _POOL_FOLDER, ignore_errors=True)
    params, loss = run.result()
    record = _record(config, sources, loss) | {"targets_explain": projection.explained}
    return Teacher(config.size, config.channels, params, record)


def _run_steps(run: DistillationRun, step_input: _Input, profile: Profile) -> int:
    """Makes steps until the run is finished or a signal comes.

    On an accelerator the losses of a dispatch are fetched while the next one runs, except before a
    checkpoint.

    Returns:
      The number of the signal that this process got, 0 for none.
    """
    ahead = is_for_accelerator(run.network.convolution)
    counts = _dispatch_counts(run)
    inputs_ahead = ahead and step_input.ahead
    with (
        closing(step_input.batches) as batches,
        closing(dispatch_inputs(batches, counts, ahead=inputs_ahead)) as all_inputs,
        interruption() as interrupted,
        tqdm(
            total=run.steps,
            initial=run.step,
            unit="step",
            file=sys.stderr,
            disable=not is_first_process(),
        ) as progress,
    ):
        step, state, running = run.step, run.state, None
        while step < run.steps and not any_process(interrupted() != 0):
            inputs = next(all_inputs)
            profile.before(step)
            state, losses = distill_steps(
                run.network,
                run.optimizer,
                step_input.batch_function,
                state=state,
                batch_params=step_input.batch_params,
                arrays=inputs.arrays,
            )
            step += inputs.steps
            if running is not None:
                _finish(run, running, progress)
            running = _Running(state, losses, inputs)
            # A checkpoint needs its state, which the next dispatch would overwrite.
            if not ahead or run.is_checkpoint_due(step) or profile.is_on:
                _finish(run, running, progress)
                running = None
            profile.after(run.step)
        if running is not None:
            _finish(run, running, progress)
        run.save()
        return interrupted()


def _dispatch_counts(run: DistillationRun) -> Iterator[int]:
    step = run.step
    while count := run.count_after(step):
        yield count
        step += count


def _finish(run: DistillationRun, running: _Running, progress: tqdm) -> None:
    """Waits for a dispatch and takes its result."""
    loss = run.record(running.state, running.losses, running.inputs)
    progress.update(running.inputs.steps)
    progress.set_postfix(loss=f"{loss:.4f}")


def _open_sources(config: DistillationConfig) -> _Sources:
    """Opens the photographs and loads the backbone and the teacher to start from."""
    if config.pool_views == 0 and config.crop != VIEW_SIZE:
        raise InputError(
            f"config.crop = {config.crop}: expected {VIEW_SIZE}, the whole view, with "
            "config.pool_views = 0"
        )
    if config.views_on_device and config.pool_views:
        raise InputError(
            f"config.pool_views = {config.pool_views}: expected 0 with config.views_on_device"
        )
    photographs = open_photographs(config.images, config.data_dir)
    held_out, train = _split(config, len(photographs.records))
    backbone = load_backbone(
        config.backbone,
        config.backbone_weights,
        config.channels,
        size=TARGET_SIZE,
        dtype=config.dtype,
    )
    start = _load_start(config) if config.start_from else None
    return _Sources(photographs, held_out, train, backbone, start)


def _split(
    config: DistillationConfig, photographs: int
) -> tuple[Int[np.ndarray, " h"], Int[np.ndarray, " t"]]:
    """Indices of the held-out photographs and of the others."""
    order = np.random.default_rng(config.seed).permutation(photographs)
    held_out = max(1, round(config.held_out_fraction * photographs))
    if photographs <= held_out:
        raise InputError(f"distillation: {photographs} photographs, expected at least 2")
    return order[:held_out], order[held_out:]


def _load_start(config: DistillationConfig) -> Teacher:
    teacher = load_teacher(config.start_from, *dict.fromkeys((config.size, "small")))
    if teacher.out_channels != config.channels:
        raise InputError(
            f"config.start_from = {config.start_from!r}: a teacher of {teacher.out_channels} "
            f"channels, expected {config.channels}"
        )
    if teacher.size != config.size:
        params = medium_from_small(teacher.params, jax.random.key(config.seed))
        teacher = teacher._replace(size=config.size, params=params)
    return teacher


def _claim_together(workdir: Path, config: DistillationConfig) -> Path:
    """Lets the first process create the work directory before the others check it."""
    if not is_first_process():
        wait_for_processes("workdir claimed")
    claimed = claim_workdir(workdir, config, ignored=_IRRELEVANT_FIELDS)
    if is_first_process():
        wait_for_processes("workdir claimed")
    return claimed


def _load_or_fit_projection(
    config: DistillationConfig, workdir: Path, sources: _Sources
) -> TargetProjection:
    """The projection that this run saved when it was first started, or a new one."""
    projection = saved_projection(workdir)
    if projection is None:
        projection = fit_target_projection(
            sources.backbone,
            statistics_views(config, sources.photographs, sources.train),
            config.channels,
            reduction=config.target_reduction,
            seed=config.seed,
        )
        if is_first_process():
            save_projection(workdir, projection)
    return projection


def _held_out_pool(config: DistillationConfig, sources: _Sources, targets: Targets) -> ViewPool:
    pool = allocate_pool(len(sources.held_out), config.channels)
    views = held_out_views(config, sources.photographs, sources.held_out)
    insert(pool, compute_targets(targets, views))
    return pool


def _open_input(
    config: DistillationConfig,
    workdir: Path,
    sources: _Sources,
    *,
    targets: Targets,
    first_step: int,
    rows: slice,
) -> _Input:
    photographs, train = sources.photographs, sources.train
    if config.views_on_device:
        return _Input(
            view_ids(config, first_step=first_step, rows=rows),
            batch_function(config, targets.compute),
            (load_photographs(photographs, train), targets.params),
            ahead=True,
        )
    if config.pool_views == 0:
        batches = fresh_batches(config, photographs, train, first_step=first_step, rows=rows)
        compute = partial(images_with_targets, targets.compute)
        return _Input(batches, compute, targets.params, ahead=True)
    batches = pool_batches(
        config,
        photographs,
        train,
        targets=targets,
        first_step=first_step,
        rows=rows,
        # All processes have to compute the same views together, so they must lack the same ones.
        folder=workdir / _POOL_FOLDER if jax.process_count() == 1 else None,
    )
    # Their targets are computed on the devices.
    return _Input(batches, images_and_targets, None, ahead=False)


def _record(config: DistillationConfig, sources: _Sources, loss: float) -> dict[str, Any]:
    """The teacher's record: its inputs, its settings and their licenses."""
    photographs = sources.photographs
    record = {
        "command": "python -m experiments.distill",
        # The names of files and folders without their paths.
        "config": {k: v for k, v in as_dict(config).items() if k not in _IRRELEVANT_FIELDS}
        | {"images": photographs.name, "data_dir": ""}
        | {
            "start_from": Path(config.start_from).name,
            "backbone_weights": Path(config.backbone_weights).name,
        },
        "backbone": sources.backbone.record,
        "images": {
            "name": photographs.name,
            "license": config.images_license or photographs.license or "not stated",
        },
        "training_images": len(sources.train),
        "held_out_images": len(sources.held_out),
        "steps": config.steps,
        "held_out_loss": round(loss, 4),
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    return record if sources.start is None else record | {"started_from": sources.start.record}
