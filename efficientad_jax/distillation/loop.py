"""The loop of phase 1: batches, steps, checkpoints, a teacher in the end."""

import signal
import sys
import time
from collections.abc import Generator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax.jax_utils import replicate
from jaxtyping import Int, PyTree
from tqdm import tqdm

from efficientad_jax.config import DistillationConfig, as_dict
from efficientad_jax.distillation.backbones import Backbone, Describe, load_backbone
from efficientad_jax.distillation.batches import (
    Batch,
    fresh_batches,
    held_out_views,
    pool_batches,
    statistics_views,
)
from efficientad_jax.distillation.input_throughput import Pace, in_words, rates
from efficientad_jax.distillation.photographs import Photographs, open_photographs
from efficientad_jax.distillation.sharding import one_of, share_of_batch, to_devices
from efficientad_jax.distillation.step import create_distill_state, distill_steps, held_out_loss
from efficientad_jax.distillation.target_projection import (
    TargetProjection,
    save_projection,
    saved_projection,
)
from efficientad_jax.distillation.targets import (
    Targets,
    describe_views,
    projected_targets,
    target_projection,
)
from efficientad_jax.distillation.view_pool import empty_pool, put_in
from efficientad_jax.distillation.views import TARGET_SIZE, VIEW_SIZE
from efficientad_jax.errors import DivergenceError, InputError, StoppedError
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, load_teacher
from efficientad_jax.optimizer import adam_with_l2, warmup_cosine, warmup_stable_decay
from efficientad_jax.runs.checkpoints import open_checkpoints
from efficientad_jax.runs.processes import any_process, is_first_process, wait_for_processes
from efficientad_jax.runs.signals import interruption
from efficientad_jax.runs.tensorboard import scalar_log
from efficientad_jax.runs.workdir import Workdir, claim_workdir

# The teacher does not depend on these: a run may be resumed with other workers.
_NOT_DECISIVE = ("worker_count",)


class _Split(NamedTuple):
    held_out: Int[np.ndarray, " h"]
    train: Int[np.ndarray, " t"]


class _Input(NamedTuple):
    """What the steps take, and what they are to make of it."""

    batches: Generator[Batch]
    describe: Describe | None
    params: PyTree


def distil_teacher(config: DistillationConfig, workdir: Path) -> Teacher:
    """Distils a PDN (Algorithm 3), going on from the newest checkpoint in `workdir`.

    Runs on all devices of all processes, each of which gets an equal share of every batch. The
    batches are the same however many devices there are.

    The photographs are split by a fixed seed: those held out give the loss that is reported and
    are never trained on. There is a checkpoint every `config.steps_per_round` steps.

    Args:
      config: of the distillation.
      workdir: for checkpoints and TensorBoard files; made, or claimed for `config`, once all
        that the configuration names has been found.

    Raises:
      StoppedError: Ctrl-C or SIGTERM stopped the run before its last step; its state is saved.
      InputError: something that the configuration names cannot be used, there are too few
        photographs, one cannot be read, the batch cannot be divided among the devices, or the
        work directory belongs to another configuration.
      DivergenceError: the loss is not finite. The checkpoint before it stays.
    """
    share = share_of_batch(config.batch_size)
    schedule = _schedule(config)
    # Algorithm 3 pads the PDN, so that it describes whole views; crops come with the targets of
    # their inside alone.
    whole = config.pool_views == 0
    if whole and config.crop != VIEW_SIZE:
        raise InputError(
            f"config.crop = {config.crop}: expected {VIEW_SIZE}, the whole, with "
            "config.pool_views = 0"
        )
    photographs = open_photographs(config.images, config.data_dir)
    split = _split(config, len(photographs.records))
    backbone = load_backbone(config.backbone, config.backbone_weights, config.channels, TARGET_SIZE)
    start = _start_of(config) if config.start_from else None
    workdir = _claim_together(workdir, config)

    projection = _projection(config, workdir, backbone, photographs, split)
    targets = projected_targets(backbone, projection)
    held_pool = empty_pool(len(split.held_out), config.channels)
    put_in(held_pool, describe_views(targets, held_out_views(config, photographs, split.held_out)))

    network = PatchDescriptionNetwork(config.size, config.channels, padding=whole)
    unpadded = PatchDescriptionNetwork(config.size, config.channels)
    optimizer = adam_with_l2(schedule, config.weight_decay)
    state = create_distill_state(jax.random.key(config.seed), network, optimizer)
    if start is not None:
        state = state._replace(params=start.params)
    with (
        open_checkpoints(Workdir(workdir).checkpoints) as checkpoints,
        interruption() as interrupted,
        scalar_log(Workdir(workdir).tensorboard, enabled=is_first_process()) as write_scalars,
    ):
        restored = checkpoints.restore_latest(state)
        state = state if restored is None else restored
        step, pace, loss_held_out = int(state.step), Pace(), None
        state = replicate(state)
        batches, describe, params = _input(config, photographs, split, targets, step, share)
        progress = tqdm(
            total=config.steps,
            initial=step,
            unit="step",
            file=sys.stderr,
            disable=not is_first_process(),
        )
        stopped = any_process(interrupted() != 0)
        first_dispatch = True
        with closing(batches):
            while step < config.steps and not stopped:
                end = (step // config.steps_per_round + 1) * config.steps_per_round
                end = min(config.steps, end)
                while step < end and not stopped:
                    count = min(config.steps_per_dispatch, end - step)
                    asked = time.perf_counter()
                    images, seen, seconds = zip(*islice(batches, count), strict=True)
                    got = time.perf_counter()
                    state, losses = distill_steps(
                        network,
                        optimizer,
                        describe,
                        state,
                        params,
                        to_devices(images),
                        to_devices(seen),
                    )
                    step += count
                    loss = float(one_of(losses).mean())
                    if not first_dispatch:
                        pace = Pace(
                            pace.images + count * config.batch_size,
                            pace.making + sum(seconds),
                            pace.waiting + got - asked,
                            pace.stepping + time.perf_counter() - got,
                        )
                    first_dispatch = False
                    if not np.isfinite(loss):
                        raise DivergenceError(
                            f"distillation: the loss is {loss} at step {step}, expected a finite "
                            "number; the last checkpoint is kept; try a lower "
                            "config.learning_rate"
                        )
                    write_scalars({"loss/train": loss}, step)
                    progress.update(count)
                    progress.set_postfix(loss=f"{loss:.4f}")
                    stopped = any_process(interrupted() != 0)
                single = one_of(state)
                loss_held_out = held_out_loss(unpadded, single.params, held_pool)
                checkpoints.save(step, single, loss_held_out)
                write_scalars({"loss/held_out": loss_held_out} | rates(pace), step)
        progress.close()
    if is_first_process() and in_words(pace):
        print(in_words(pace), file=sys.stderr)
    if step < config.steps:
        # Where another process got the signal, this one has none of its own.
        raise StoppedError(interrupted() or signal.SIGTERM, step)
    final = one_of(state).params
    if loss_held_out is None:  # the checkpoint was that of the last step
        loss_held_out = held_out_loss(unpadded, final, held_pool)
    record = _record(config, photographs, split, backbone, start, loss_held_out)
    record["targets_explain"] = projection.explained
    return Teacher(config.size, config.channels, final, record)


def _projection(
    config: DistillationConfig,
    workdir: Path,
    backbone: Backbone,
    photographs: Photographs,
    split: _Split,
) -> TargetProjection:
    """How targets are made of features: what an earlier start of this run left, or found here."""
    projection = saved_projection(workdir)
    if projection is None:
        views = statistics_views(config, photographs, split.train)
        projection = target_projection(
            backbone, views, config.channels, config.target_reduction, config.seed
        )
        if is_first_process():
            save_projection(workdir, projection)
    return projection


def _schedule(config: DistillationConfig) -> optax.ScalarOrSchedule:
    rate, steps, warmup = config.learning_rate, config.steps, config.warmup_steps
    match config.schedule:
        case "warmup_cosine":
            return warmup_cosine(rate, steps, warmup)
        case "warmup_stable_decay":
            return warmup_stable_decay(rate, steps, warmup, config.decay_steps)
        case _:
            return rate


def _split(config: DistillationConfig, photographs: int) -> _Split:
    order = np.random.default_rng(config.seed).permutation(photographs)
    held_out = max(1, round(config.held_out_fraction * photographs))
    if photographs <= held_out:
        raise InputError(f"distillation: {photographs} photographs, expected at least 2")
    return _Split(order[:held_out], order[held_out:])


def _input(
    config: DistillationConfig,
    photographs: Photographs,
    split: _Split,
    targets: Targets,
    step: int,
    share: slice,
) -> _Input:
    if config.pool_views == 0:
        batches = fresh_batches(config, photographs, split.train, step, share)
        return _Input(batches, *targets)
    return _Input(pool_batches(config, photographs, split.train, targets, step, share), None, None)


def _start_of(config: DistillationConfig) -> Teacher:
    """The teacher that `config` starts from."""
    teacher = load_teacher(config.start_from, config.size)
    if teacher.out_channels != config.channels:
        raise InputError(
            f"config.start_from = {config.start_from!r}: a teacher of {teacher.out_channels} "
            f"channels, expected {config.channels}"
        )
    return teacher


def _claim_together(workdir: Path, config: DistillationConfig) -> Path:
    """The first process makes the work directory, the others find it made."""
    if not is_first_process():
        wait_for_processes("workdir claimed")
    claimed = claim_workdir(workdir, config, ignored=_NOT_DECISIVE)
    if is_first_process():
        wait_for_processes("workdir claimed")
    return claimed


def _record(
    config: DistillationConfig,
    photographs: Photographs,
    split: _Split,
    backbone: Backbone,
    start: Teacher | None,
    loss: float,
) -> dict[str, Any]:
    """The teacher's card: what it was made of, how, and under which licences."""
    record = {
        "command": "python -m experiments.distill",
        # The names of files and folders, not where they lay.
        "config": {k: v for k, v in as_dict(config).items() if k not in _NOT_DECISIVE}
        | {"images": photographs.name, "data_dir": ""}
        | {
            "start_from": Path(config.start_from).name,
            "backbone_weights": Path(config.backbone_weights).name,
        },
        "backbone": backbone.record,
        "images": {
            "name": photographs.name,
            "license": config.images_license or photographs.license or "not stated",
        },
        "training_images": len(split.train),
        "held_out_images": len(split.held_out),
        "steps": config.steps,
        "held_out_loss": round(loss, 4),
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    return record if start is None else record | {"started_from": start.record}
