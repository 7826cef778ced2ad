"""From the figures of single runs to those of a table: over categories, collections and seeds."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from efficientad_jax.networks.pdn import Size
from efficientad_jax.reproduction.collections_on_disk import COLLECTIONS
from efficientad_jax.reproduction.plan import Run, Variant

# By run, what its `metrics.json` says.
Results = Mapping[Run, Mapping[str, Any]]
# From a run's `metrics.json` to one figure in [0, 1]; None where it is not defined.
Reading = Callable[[Mapping[str, Any]], float | None]

LOCO_KINDS = {"logical": "logical_anomalies", "structural": "structural_anomalies"}


class Measured(NamedTuple):
    """A figure of ours.

    Attributes:
      mean: over seeds, of the means over categories.
      deviation: sample standard deviation over seeds, None of one seed.
      seeds: how many there are.
      categories: how many categories went into it.
      of: how many there should be.
    """

    mean: float
    deviation: float | None = None
    seeds: int = 0
    categories: int = 0
    of: int = 0


class _BySeed(NamedTuple):
    means: dict[int, float]
    categories: int
    of: int


def detection(metrics: Mapping[str, Any]) -> float | None:
    """Image AU-ROC."""
    return metrics["detector"].get("image_auroc")


def detection_of_kind(kind: str) -> Reading:
    """Image AU-ROC of the good images against one kind of anomalies, 'logical' for instance."""
    return lambda metrics: metrics["detector"]["image_auroc_by_defect"].get(LOCO_KINDS[kind])


def collection_figure(
    results: Results, dataset: str, size: Size, variant: Variant, reading: Reading
) -> Measured | None:
    """A figure of one collection, in per cent.

    It is taken over the categories that have results, of the seeds that have all of these.
    """
    return _over_seeds([_by_seed(results, dataset, size, variant, reading)])


def mean_figure(
    results: Results, size: Size, variant: Variant, reading_of: Callable[[str], Reading]
) -> Measured | None:
    """The mean over the three collections, in per cent; None unless all three have results.

    Args:
      results: of all runs.
      size: of the networks.
      variant: of the configuration.
      reading_of: what is read, by collection.
    """
    return _over_seeds(
        [_by_seed(results, name, size, variant, reading_of(name)) for name in COLLECTIONS]
    )


def segmentation_of(dataset: str) -> Reading:
    """AU-PRO or AU-sPRO, whichever the collection is measured by."""
    return lambda metrics: metrics["detector"].get(COLLECTIONS[dataset].segmentation)


def _by_seed(
    results: Results, dataset: str, size: Size, variant: Variant, reading: Reading
) -> _BySeed:
    found: dict[int, dict[str, float]] = {}
    for run, metrics in results.items():
        if (run.dataset, run.size, run.variant) == (dataset, size, variant):
            value = reading(metrics)
            if value is not None:
                found.setdefault(run.seed, {})[run.category] = value
    categories = {category for values in found.values() for category in values}
    means = {
        seed: statistics.fmean(values.values())
        for seed, values in found.items()
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
        sum(part.of for part in parts),
    )
