"""The trainings of a sweep: settings x categories x seeds, each with a name and a configuration."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from efficientad_jax.config import Config, as_dict, replace
from efficientad_jax.data.datasets import categories_of
from efficientad_jax.errors import InputError

# A field of the configuration and the values that a sweep gives it, as text.
Axis = tuple[str, Sequence[str]]


class Training(NamedTuple):
    """One training of a sweep.

    Attributes:
      settings: the values of the grid's fields, as text; empty without a grid.
      category: of the dataset.
      seed: of the training.
      config: the sweep's, with these settings, this category and this seed.
    """

    settings: dict[str, str]
    category: str
    seed: int
    config: Config

    @property
    def setting(self) -> str:
        """Such as 'losses.p_hard=0.99,train.learning_rate=0.001'; '' without a grid."""
        return ",".join(f"{field}={value}" for field, value in self.settings.items())

    @property
    def name(self) -> str:
        """Such as 'bottle/seed0' or 'losses.p_hard=0.99/bottle/seed0'; also its folder."""
        # The last part of a path is enough to tell files apart, and "/" would make folders.
        shown = (f"{field}={Path(value).name}" for field, value in self.settings.items())
        setting = f"{','.join(shown)}/" if self.settings else ""
        return f"{setting}{self.category or 'images'}/seed{self.seed}"


def planned_trainings(
    base: Config, categories: Sequence[str], seeds: int, *, grid: Sequence[Axis] = ()
) -> list[Training]:
    """Lists all trainings of a sweep, seed by seed: all settings and categories soon have one.

    Args:
      base: configuration of all of them.
      categories: names, or 'all' for those of the dataset.
      seeds: number of trainings per category and setting, with seeds from `base.seed` on.
      grid: every combination of the values is a setting.

    Raises:
      InputError: a category is not in the dataset, a field or value of the grid cannot be used, two
        trainings have the same folder, or there is nothing to train.
    """
    chosen = _chosen_categories(base, categories)
    if seeds < 1 or not chosen:
        raise InputError(
            f"--seeds={seeds}, --categories={','.join(categories)}: nothing to train, expected at "
            "least one of each"
        )
    settings = [_with_settings(base, combination) for combination in product(*map(_pairs, grid))]
    trainings = [
        Training(changed, category, seed, replace(config, {"category": category, "seed": seed}))
        for seed in range(base.seed, base.seed + seeds)
        for changed, config in settings
        for category in chosen
    ]
    names = [training.name for training in trainings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--grid: two trainings have the folder {twice[0]}; name other values")
    return trainings


def parse_axis(text: str) -> Axis:
    """Reads a flag such as 'config.losses.p_hard=0.99,0.999'.

    Raises:
      InputError: it has another form.
    """
    field, _, values = text.partition("=")
    parsed = [value for value in values.split(",") if value]
    if not field.startswith("config.") or not parsed:
        raise InputError(f"--grid={text}: expected config.FIELD=VALUE,VALUE,...")
    return field.removeprefix("config."), parsed


def _chosen_categories(base: Config, categories: Sequence[str]) -> list[str]:
    known = categories_of(base.dataset.name, base.dataset.root)
    chosen = known if list(categories) == ["all"] else list(dict.fromkeys(categories))
    for category in chosen:
        if category not in known:
            raise InputError(
                f"--categories: {category!r} is none of {base.dataset.name}, expected 'all' or "
                f"some of: {', '.join(known)}"
            )
    return chosen


def _pairs(axis: Axis) -> list[tuple[str, str]]:
    field, values = axis
    return [(field, value) for value in values]


def _with_settings(
    base: Config, combination: Sequence[tuple[str, str]]
) -> tuple[dict[str, str], Config]:
    changes = {field: _value(base, field, text) for field, text in combination}
    try:
        return dict(combination), replace(base, changes)
    except InputError as error:
        shown = " ".join(f"--grid=config.{field}={text}" for field, text in combination)
        raise InputError(f"{shown}: {error}") from error


def _value(base: Config, field: str, text: str) -> Any:
    """The value of a field: text where the field holds text, otherwise as in JSON."""
    present: Any = as_dict(base)
    for part in field.split("."):
        if not isinstance(present, dict) or part not in present:
            raise InputError(f"--grid=config.{field}: no such field")
        present = present[part]
    if isinstance(present, dict) or field in ("seed", "category"):
        raise InputError(
            f"--grid=config.{field}: expected a single field; --seeds and --categories set the "
            "seeds and categories"
        )
    if isinstance(present, str):
        return text
    try:
        return json.loads(text.lower())  # 'True' is as good as 'true'
    except ValueError:
        return text  # the configuration says what it expects
