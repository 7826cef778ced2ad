"""What the steps of phase 1 see: crops of a pool of views, or whole photographs, each once.

Both follow from the configuration and the number of the step alone.
"""

import time
from collections.abc import Generator, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from efficientad_jax.config import DistillationConfig
from efficientad_jax.distillation.photographs import Photographs
from efficientad_jax.distillation.targets import Targets, describe_views, own_numbers
from efficientad_jax.distillation.view_pool import empty_pool, put_in, random_crops
from efficientad_jax.distillation.views import ViewRecipe, Views, makers, view_batches


class Batch(NamedTuple):
    """This process's share of the batch of a step.

    Attributes:
      images: for the PDN.
      seen: their targets, or for `fresh_batches` what the backbone sees of them.
      seconds: in which the input alone would have made it.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    seen: Shaped[np.ndarray, "n _h _w _c"]
    seconds: float


def fresh_batches(
    config: DistillationConfig,
    photographs: Photographs,
    train: Int[np.ndarray, " t"],
    first_step: int,
    share: slice,
) -> Generator[Batch]:
    """Whole photographs, as in Algorithm 3, lines 15-19; the backbone sees them in the step.

    Args:
      config: of the distillation.
      photographs: all there are.
      train: those to learn from, in this order.
      first_step: whose batch is the first.
      share: rows of this process in every batch.
    """
    size = config.batch_size
    numbers = np.arange(first_step * size, config.steps * size).reshape(-1, size)[:, share]
    recipe = _recipe(config, 4)
    for views in view_batches(photographs, train, recipe, numbers, config.worker_count):
        seconds = float(views.seconds.sum()) / makers(config.worker_count)
        yield Batch(views.small, views.large, seconds)


def pool_batches(
    config: DistillationConfig,
    photographs: Photographs,
    train: Int[np.ndarray, " t"],
    targets: Targets,
    first_step: int,
    share: slice,
) -> Generator[Batch]:
    """Crops of a pool of views, which is renewed in part every `config.steps_per_round` steps.

    The pool of a round are the `config.pool_views` newest of all views made up to it.
    The arguments are those of `fresh_batches`, and how targets are made.
    """
    rounds = range(first_step // config.steps_per_round, -(-config.steps // config.steps_per_round))
    new = [_new_views(config, r, all_of_them=r == rounds.start) for r in rounds]
    numbers = np.concatenate([own_numbers(n) for n in new]) if new else np.zeros((0, 1), int)
    views = describe_views(
        targets,
        view_batches(photographs, train, _recipe(config, 3), numbers, config.worker_count),
    )
    pool = empty_pool(config.pool_views, config.channels)
    start = time.perf_counter()
    for step in range(first_step, config.steps):
        if step == first_step or step % config.steps_per_round == 0:
            put_in(pool, islice(views, len(new.pop(0))))
        rng = np.random.default_rng((config.seed, 1, step))
        images, seen = random_crops(pool, rng, config.batch_size, config.crop, share)
        yield Batch(images, seen, time.perf_counter() - start)
        start = time.perf_counter()


def _new_views(
    config: DistillationConfig, round_number: int, all_of_them: bool
) -> Int[np.ndarray, " n"]:
    """Numbers of the views that come into the pool in a round."""
    size = config.pool_views
    newest = size + round_number * config.new_views_per_round
    return np.arange(
        newest - (size if all_of_them else min(size, config.new_views_per_round)), newest
    )


def _recipe(config: DistillationConfig, stream: int) -> ViewRecipe:
    return ViewRecipe(
        (config.seed, stream),
        config.smallest_area,
        config.smallest_contrast,
        config.grayscale_probability,
        config.backbone_size,
        config.turns,
        config.mixup_probability,
    )


def _recipe_of_whole(config: DistillationConfig, stream: int) -> ViewRecipe:
    return _recipe(config, stream)._replace(
        smallest_area=1.0, smallest_contrast=1.0, turns=False, mixup_probability=0.0
    )


def statistics_views(
    config: DistillationConfig, photographs: Photographs, train: Int[np.ndarray, " t"]
) -> Iterator[Views]:
    """Whole photographs that the targets' mean and std are taken over, this process's share."""
    recipe = _recipe_of_whole(config, 2)
    numbers = own_numbers(np.arange(min(config.statistics_images, len(train))))
    return view_batches(photographs, train, recipe, numbers, config.worker_count)


def held_out_views(
    config: DistillationConfig, photographs: Photographs, held_out: Int[np.ndarray, " h"]
) -> Iterator[Views]:
    """Whole photographs in colour that are never trained on, this process's share."""
    recipe = _recipe_of_whole(config, 5)._replace(grayscale_probability=0.0)
    numbers = own_numbers(np.arange(len(held_out)))
    return view_batches(photographs, held_out, recipe, numbers, config.worker_count)
