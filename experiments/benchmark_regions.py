"""Times the region step: from an anomaly map to boxes, areas, centroids and scores.

    python -m experiments.benchmark_regions

The map is synthetic. The step is the same for every detector and runs on one CPU core.
"""

from absl import flags

from efficientad_jax.benchmark.regions import time_regions
from experiments import run

_SIDE = flags.DEFINE_integer("side", 512, "height and width of the map", lower_bound=16)
_REGIONS = flags.DEFINE_integer("regions", 20, "number of regions", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 200, "number of calls", lower_bound=1)


def main() -> int:
    """Prints the times."""
    for line in time_regions(_SIDE.value, _REGIONS.value, _ROUNDS.value):
        print(line)
    return 0


if __name__ == "__main__":
    run(main)
