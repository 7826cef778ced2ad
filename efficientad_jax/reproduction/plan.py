"""The runs of a table: each has a name, a folder and a configuration."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from efficientad_jax.config import Config, as_dict, replace
from efficientad_jax.networks.pdn import Size

Value = float | bool


class Variant(NamedTuple):
    """How a run's configuration differs from the one that the user gave.

    Attributes:
      changes: fields of the configuration and their values, such as `("losses.p_hard", 0.0)`,
        ordered by field. Fields of `calibration` do not need another training.
    """

    changes: tuple[tuple[str, Value], ...] = ()

    @property
    def name(self) -> str:
        """'full', or the changes, such as 'p_hard=0.0,penalty=False'."""
        named = [f"{field.rpartition('.')[2]}={value}" for field, value in self.changes]
        return ",".join(named) or "full"

    @property
    def trained(self) -> "Variant":
        """The variant whose detector this one uses: itself, unless calibration is changed."""
        return Variant(tuple(c for c in self.changes if not c[0].startswith("calibration.")))


FULL = Variant()


def variant_of(config: Config, changes: Mapping[str, Value]) -> Variant:
    """Makes the variant with these changes; values that `config` has already are omitted."""
    flat = {
        f"{section}.{field}": value
        for section in ("losses", "calibration")
        for field, value in as_dict(config)[section].items()
    }
    return Variant(tuple(sorted((f, v) for f, v in changes.items() if flat[f] != v)))


class Run(NamedTuple):
    """One detector and its evaluation."""

    dataset: str
    category: str
    size: Size
    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """Such as 'mvtec_ad/bottle/small/full/seed0'; also its folder in the results."""
        return f"{self.dataset}/{self.category}/{self.size}/{self.variant.name}/seed{self.seed}"

    @property
    def trained(self) -> "Run":
        """The run whose detector this one uses: itself, unless calibration is changed."""
        return self._replace(variant=self.variant.trained)


class Inputs(NamedTuple):
    """The files that runs read.

    Attributes:
      roots: folder or archive of each collection, absolute.
      teachers: file of the teacher of each size; '' for the packaged one.
    """

    roots: Mapping[str, Path]
    teachers: Mapping[Size, str]


def planned_runs(
    categories: Mapping[str, Sequence[str]],
    detectors: Iterable[tuple[Size, Variant]],
    seeds: Sequence[int],
) -> list[Run]:
    """Lists all runs of a table; runs that train precede the runs that use their detectors.

    Args:
      categories: of each collection, those to run.
      detectors: sizes and variants.
      seeds: runs are ordered by seed, so that the first seed soon fills a whole table.
    """
    shown = list(detectors)
    ordered: list[tuple[Size, Variant]] = [(size, variant.trained) for size, variant in shown]
    ordered += shown
    return [
        Run(dataset, category, size, variant, seed)
        for seed in seeds
        for dataset, names in categories.items()
        for category in names
        for size, variant in dict.fromkeys(ordered)
    ]


def configuration_of(run: Run, base: Config, inputs: Inputs) -> Config:
    """Makes the configuration of a run from `base`, that is `configs/paper.py`."""
    changes = {
        "seed": run.seed,
        "dataset.name": run.dataset,
        "dataset.root": str(inputs.roots.get(run.dataset, "")),
        "category": run.category,
        "model.size": run.size,
        "teacher": inputs.teachers.get(run.size, ""),
    }
    return replace(base, changes | dict(run.variant.changes))
