"""The inputs of the steps of phase 1: crops of a pool of views, or whole photographs, each once.

The configuration and the number of a step determine its batch.
"""

import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int, PyTree, Shaped

from efficientad_jax.config import DistillationConfig
from efficientad_jax.distillation.backbones import FeatureFunction
from efficientad_jax.distillation.photographs import Photographs
from efficientad_jax.distillation.sharding import (
    copy_to_devices,
    local_view_ids,
    shard_batches,
)
from efficientad_jax.distillation.targets import Targets, compute_targets
from efficientad_jax.distillation.view_pool import (
    allocate_pool,
    insert,
    missing_views,
    random_crops,
)
from efficientad_jax.distillation.views import ViewRecipe, Views, parallel_views, view_batches


class Batch(NamedTuple):
    """This process's rows of the batch of a step.

    Attributes:
      arrays: what the step computes images and targets from, see `step.BatchFunction`.
      seconds: time that the input pipeline by itself needs for the batch.
    """

    arrays: tuple[Shaped[np.ndarray, "n *_"], ...]
    seconds: float


class StepInputs(NamedTuple):
    """The batches of the `k` steps of a dispatch, divided among the `d` devices of this process.

    Attributes:
      arrays: see `Batch`.
      steps: their number, `k`.
      making: seconds that the input pipeline by itself needs for them.
      waiting: seconds that the steps waited for them.
    """

    arrays: tuple[Shaped[np.ndarray | Array, "d k n *_"], ...]
    steps: int
    making: float
    waiting: float


def dispatch_inputs(
    batches: Iterator[Batch], counts: Iterator[int], *, ahead: bool
) -> Generator[StepInputs]:
    """The inputs of one dispatch after the other.

    Args:
      batches: of all steps.
      counts: numbers of steps of the dispatches.
      ahead: whether the inputs of the next dispatch are taken and copied to the devices while a
        dispatch runs. Batches that are computed on the devices of several processes must not be:
        all processes have to start computations in the same order.
    """
    if not ahead:
        for count in counts:
            start = time.perf_counter()
            inputs = _take(batches, count)
            yield inputs._replace(waiting=time.perf_counter() - start)
        return

    def take_to_devices(count: int) -> StepInputs:
        inputs = _take(batches, count)
        return inputs._replace(arrays=copy_to_devices(inputs.arrays))

    with ThreadPoolExecutor(1) as reader:
        upcoming = [reader.submit(take_to_devices, count) for count in islice(counts, 1)]
        while upcoming:
            start = time.perf_counter()
            inputs = upcoming.pop().result()
            upcoming = [reader.submit(take_to_devices, count) for count in islice(counts, 1)]
            yield inputs._replace(waiting=time.perf_counter() - start)


def _take(batches: Iterator[Batch], count: int) -> StepInputs:
    """The batches of the next `count` steps."""
    arrays, seconds = zip(*islice(batches, count), strict=True)
    sharded = tuple(shard_batches(array) for array in zip(*arrays, strict=True))
    return StepInputs(sharded, count, sum(seconds), 0.0)


def fresh_batches(
    config: DistillationConfig,
    photographs: Photographs,
    train: Int[np.ndarray, " t"],
    *,
    first_step: int,
    rows: slice,
) -> Generator[Batch]:
    """Whole photographs for the PDN and for the backbone, as in Algorithm 3, lines 15-19.

    Args:
      config: of the distillation.
      photographs: all photographs.
      train: indices of those to learn from, in this order.
      first_step: the step of the first batch.
      rows: rows of this process in every batch.
    """
    size = config.batch_size
    ids = np.arange(first_step * size, config.steps * size).reshape(-1, size)[:, rows]
    batches = view_batches(
        photographs, train, view_recipe(config, 4), ids=ids, workers=config.worker_count
    )
    with closing(batches):
        for views in batches:
            seconds = float(views.seconds.sum()) / parallel_views(config.worker_count)
            yield Batch((views.small, views.large), seconds)


def images_with_targets(
    compute: FeatureFunction, params: PyTree, arrays: tuple[Array, Array]
) -> tuple[Array, Array]:
    """From a batch of `fresh_batches`: the PDN's images, and the targets of the backbone's."""
    images, large = arrays
    return images, compute(params, large)


def images_and_targets(params: None, arrays: tuple[Array, Array]) -> tuple[Array, Array]:
    """From a batch of `pool_batches`, which holds both."""
    del params
    return arrays


def pool_batches(
    config: DistillationConfig,
    photographs: Photographs,
    train: Int[np.ndarray, " t"],
    *,
    targets: Targets,
    first_step: int,
    rows: slice,
    folder: Path | None,
) -> Generator[Batch]:
    """Crops of a pool of views and their targets.

    A part of the pool is renewed every `config.steps_per_round` steps. The pool of a round holds
    the `config.pool_views` newest of all views made until then.

    Args:
      config: of the distillation.
      photographs: all photographs.
      train: indices of those to learn from.
      targets: how targets are computed.
      first_step: the step of the first batch.
      rows: rows of this process in every batch.
      folder: where the pool is kept between runs, None for a pool in memory.
    """
    if first_step >= config.steps:
        return
    pool = allocate_pool(config.pool_views, config.channels, folder)
    rounds = range(first_step // config.steps_per_round, -(-config.steps // config.steps_per_round))
    new_ids = [_new_ids(config, r) for r in rounds[1:]]
    new_ids.insert(0, missing_views(pool, _pool_ids(config, rounds.start)))
    batches = view_batches(
        photographs,
        train,
        view_recipe(config, 3),
        ids=np.concatenate([local_view_ids(ids) for ids in new_ids]),
        workers=config.worker_count,
    )
    with closing(batches):
        views = compute_targets(targets, batches)
        start = time.perf_counter()
        for step in range(first_step, config.steps):
            if step == first_step or step % config.steps_per_round == 0:
                insert(pool, islice(views, len(new_ids.pop(0))))
            rng = np.random.default_rng((config.seed, 1, step))
            images, crop_targets = random_crops(
                pool, rng, config.batch_size, crop=config.crop, rows=rows
            )
            yield Batch((images, crop_targets), time.perf_counter() - start)
            start = time.perf_counter()


def _pool_ids(config: DistillationConfig, round_number: int) -> Int[np.ndarray, " n"]:
    """Ids of all views of a round."""
    first = round_number * config.new_views_per_round
    return np.arange(first, first + config.pool_views)


def _new_ids(config: DistillationConfig, round_number: int) -> Int[np.ndarray, " n"]:
    """Ids of the views that the round before did not have."""
    new = min(config.pool_views, config.new_views_per_round)
    return _pool_ids(config, round_number)[config.pool_views - new :]


def view_recipe(config: DistillationConfig, stream: int) -> ViewRecipe:
    """How the views of an independent stream of random numbers are made."""
    return ViewRecipe(
        (config.seed, stream),
        config.smallest_area,
        config.smallest_contrast,
        config.grayscale_probability,
        config.backbone_size,
        config.turns,
        config.mixup_probability,
    )


def _whole_recipe(config: DistillationConfig, stream: int) -> ViewRecipe:
    return view_recipe(config, stream)._replace(
        smallest_area=1.0, smallest_contrast=1.0, turns=False, mixup_probability=0.0
    )


def statistics_views(
    config: DistillationConfig, photographs: Photographs, train: Int[np.ndarray, " t"]
) -> Iterator[Views]:
    """This process's share of the whole photographs that the projection is fitted on."""
    ids = local_view_ids(np.arange(min(config.statistics_images, len(train))))
    recipe = _whole_recipe(config, 2)
    return view_batches(photographs, train, recipe, ids=ids, workers=config.worker_count)


def held_out_views(
    config: DistillationConfig, photographs: Photographs, held_out: Int[np.ndarray, " h"]
) -> Iterator[Views]:
    """This process's share of the whole color photographs that are never trained on."""
    ids = local_view_ids(np.arange(len(held_out)))
    recipe = _whole_recipe(config, 5)._replace(grayscale_probability=0.0)
    return view_batches(photographs, held_out, recipe, ids=ids, workers=config.worker_count)
