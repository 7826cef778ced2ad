"""Aggregates the results of runs over categories, collections and seeds, for a table."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from efficientad_jax.networks.pdn import Size
from efficientad_jax.reproduction.collections_on_disk import COLLECTIONS
from efficientad_jax.reproduction.plan import Run, Variant

# The contents of each run's `metrics.json`.
Results = Mapping[Run, Mapping[str, Any]]
# Selects a metric in [0, 1] from the contents of `metrics.json`; None if it is undefined.
Reading = Callable[[Mapping[str, Any]], float | None]

LOCO_KINDS = {"logical": "logical_anomalies", "structural": "structural_anomalies"}


class Measured(NamedTuple):
    """A result of ours.

    Attributes:
      mean: over seeds, of the means over categories.
      deviation: sample standard deviation over seeds; None for one seed.
      seeds: number of seeds.
      categories: number of categories that have results.
      all_categories: number of categories in the collections.
    """

    mean: float
    deviation: float | None = None
    seeds: int = 0
    categories: int = 0
    all_categories: int = 0


class _BySeed(NamedTuple):
    means: dict[int, float]
    categories: int
    all_categories: int


def detection(metrics: Mapping[str, Any]) -> float | None:
    """Image AU-ROC."""
    return metrics["detector"].get("image_auroc")


def detection_of_kind(kind: str) -> Reading:
    """Image AU-ROC of the good images against one kind of anomalies, such as 'logical'."""
    return lambda metrics: metrics["detector"]["image_auroc_by_defect"].get(LOCO_KINDS[kind])


def collection_result(
    results: Results, dataset: str, size: Size, variant: Variant, reading: Reading
) -> Measured | None:
    """Aggregates a metric over one collection, in percent.

    The categories are those that have results; the seeds are those with results of all of them.
    """
    return _over_seeds([_by_seed(results, dataset, size, variant, reading)])


def mean_result(
    results: Results, size: Size, variant: Variant, reading_of: Callable[[str], Reading]
) -> Measured | None:
    """Aggregates a metric over the three collections, in percent; None unless all have results.

    Args:
      results: of all runs.
      size: of the networks.
      variant: of the configuration.
      reading_of: maps the name of a collection to its metric.
    """
    return _over_seeds(
        [_by_seed(results, name, size, variant, reading_of(name)) for name in COLLECTIONS]
    )


def segmentation_of(dataset: str) -> Reading:
    """AU-PRO or AU-sPRO, as usual for the collection."""
    return lambda metrics: metrics["detector"].get(COLLECTIONS[dataset].segmentation)


def _by_seed(
    results: Results, dataset: str, size: Size, variant: Variant, reading: Reading
) -> _BySeed:
    by_seed: dict[int, dict[str, float]] = {}
    for run, metrics in results.items():
        if (run.dataset, run.size, run.variant) == (dataset, size, variant):
            value = reading(metrics)
            if value is not None:
                by_seed.setdefault(run.seed, {})[run.category] = value
    categories = {category for values in by_seed.values() for category in values}
    means = {
        seed: statistics.fmean(values.values())
        for seed, values in by_seed.items()
        if values.keys() == categories
    }
    return _BySeed(means, len(categories), len(COLLECTIONS[dataset].benchmark.categories))


def _over_seeds(parts: list[_BySeed]) -> Measured | None:
    seeds = set.intersection(*(set(part.means) for part in parts))
    if not seeds:
        return None
    means = [100 * statistics.fmean(part.means[seed] for part in parts) for seed in sorted(seeds)]
    return Measured(
        statistics.fmean(means),
        statistics.stdev(means) if len(means) > 1 else None,
        len(means),
        sum(part.categories for part in parts),
        sum(part.all_categories for part in parts),
    )
