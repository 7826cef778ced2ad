"""Times the AU-PRO over large maps and compares it with two other ways to compute it.

    python -m experiments.benchmark_metrics

The literal definition computes the overlap of every region and the false positive rate at each
threshold from all maps; it uses far fewer thresholds than the exact curve has points. The other way
is exact, as this project's is, and the usual one: it sorts all pixels.
"""

from absl import flags

from efficientad_jax.benchmark.au_pro import time_au_pro
from efficientad_jax.errors import InputError
from experiments import run

_MAPS = flags.DEFINE_integer("maps", 100, "number of maps, half with defects", lower_bound=2)
_SIDE = flags.DEFINE_integer("side", 1024, "height and width of the maps", lower_bound=64)
_THRESHOLDS = flags.DEFINE_integer("thresholds", 100, "of the literal definition", lower_bound=2)


def main(argv: list[str]) -> int:
    """Prints areas, times and the peak memory."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}: expected flags only")
    for line in time_au_pro(_MAPS.value, _SIDE.value, _THRESHOLDS.value):
        print(line)
    return 0


if __name__ == "__main__":
    run(main)
