"""The trainings of a sweep: a name, which is also the folder, and a configuration for each."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from efficientad_jax.config import Config
from efficientad_jax.data.loading import categories_of
from efficientad_jax.errors import InputError


class SweepRun(NamedTuple):
    """One training.

    Attributes:
      name: such as 'bottle/seed0'; also its folder in the work directory of the sweep.
      category: of the dataset.
      seed: of the training.
      config: the sweep's, with this category and seed.
    """

    name: str
    category: str
    seed: int
    config: Config


def planned_runs(base: Config, categories: Sequence[str], seeds: int) -> list[SweepRun]:
    """Lists all trainings of a sweep, seed by seed: each category is soon trained once.

    Args:
      base: configuration of all of them.
      categories: names, or 'all' for those of the dataset.
      seeds: number of trainings per category, with seeds from `base.seed` on.

    Raises:
      InputError: a category is not in the dataset, or there is nothing to train.
    """
    known = categories_of(base.dataset.name, base.dataset.root)
    chosen = known if list(categories) == ["all"] else list(dict.fromkeys(categories))
    for category in chosen:
        if category not in known:
            raise InputError(
                f"--categories: {category!r} is none of {base.dataset.name}, expected 'all' or "
                f"some of: {', '.join(known)}"
            )
    if seeds < 1 or not chosen:
        raise InputError(
            f"--seeds={seeds}, --categories={','.join(categories)}: nothing to train, expected at "
            "least one of each"
        )
    return [
        SweepRun(f"{category or 'images'}/seed{seed}", category, seed, _with(base, category, seed))
        for seed in range(base.seed, base.seed + seeds)
        for category in chosen
    ]


def _with(base: Config, category: str, seed: int) -> Config:
    return replace(base, category=category, seed=seed)
