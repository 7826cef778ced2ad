"""Times train steps of several trainings: sequentially, with pmap and with vmap.

    python -m experiments.benchmark_sweep --trainings=2

pmap needs a device per training. XLA_FLAGS=--xla_force_host_platform_device_count=2 simulates two
devices that share the cores of a CPU. All ways are timed in one process, interleaved.
"""

from typing import cast

import jax
from absl import flags

from efficientad_jax import recipes
from efficientad_jax.benchmark.side_by_side import time_side_by_side
from efficientad_jax.config import LossConfig
from efficientad_jax.convolution import ConvolutionMethod
from efficientad_jax.errors import InputError
from efficientad_jax.networks.pdn import LETTERS, Size
from efficientad_jax.training.session import configured_optimizer
from experiments import run

_SIZE = flags.DEFINE_enum("size", "small", ["small", "medium"], "of the networks")
_SIDE = flags.DEFINE_integer("side", 256, "height and width of the images", lower_bound=128)
_TRAININGS = flags.DEFINE_integer("trainings", 2, "number of trainings", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 5, "steps of each training per dispatch", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "how often each way is timed", lower_bound=1)
_CONVOLUTION = flags.DEFINE_enum(
    "convolution", "auto", ["auto", "direct"], "'direct' is XLA's convolution, as on accelerators"
)
_PAPER = flags.DEFINE_bool("paper", True, "all losses; --nopaper: only the hard feature loss")


def main(argv: list[str]) -> int:
    """Times and prints."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}: expected flags only")
    size, convolution = cast(Size, _SIZE.value), cast(ConvolutionMethod, _CONVOLUTION.value)
    times = time_side_by_side(
        size,
        _SIDE.value,
        _TRAININGS.value,
        objective=LossConfig(penalty=_PAPER.value, autoencoder=_PAPER.value),
        optimizer=configured_optimizer(recipes.folder().train),
        steps=_STEPS.value,
        rounds=_ROUNDS.value,
        convolution=convolution,
    )
    device = jax.local_devices()[0]
    steps = _TRAININGS.value * _STEPS.value
    print(
        f"{_TRAININGS.value} trainings of PDN-{LETTERS[size]} at {_SIDE.value} pixels, "
        f"{jax.local_device_count()} x {device.device_kind}"
    )
    first = times["sequential"].median
    for way, seconds in times.items():
        print(
            f"{way:<20}{steps / seconds.median:7.2f} steps/s in total "
            f"({steps / seconds.upper:.2f} to {steps / seconds.lower:.2f}), "
            f"{first / seconds.median:.2f} times as fast"
        )
    return 0


if __name__ == "__main__":
    run(main)
