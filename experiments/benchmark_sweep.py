"""Times train steps of several trainings: one after another, by pmap and by vmap.

    python -m experiments.benchmark_sweep --trainings=2

pmap needs as many devices as there are trainings; a CPU simulates some, which share its cores, with
XLA_FLAGS=--xla_force_host_platform_device_count=2. All ways are timed in turns in one process.
"""

from typing import cast

import jax
from absl import flags

from efficientad_jax import recipes
from efficientad_jax.benchmark.side_by_side import time_side_by_side
from efficientad_jax.config import LossConfig
from efficientad_jax.convolution import Method
from efficientad_jax.networks.pdn import Size
from efficientad_jax.training.session import configured_optimizer
from experiments import run

_SIZE = flags.DEFINE_enum("size", "small", ["small", "medium"], "of the networks")
_SIDE = flags.DEFINE_integer("side", 256, "height and width of the images", lower_bound=128)
_TRAININGS = flags.DEFINE_integer("trainings", 2, "at once", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 5, "of each training in a dispatch", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "how often each way is timed", lower_bound=1)
_CONVOLUTION = flags.DEFINE_enum(
    "convolution", "auto", ["auto", "direct"], "'direct' is XLA's, as on accelerators"
)
_PAPER = flags.DEFINE_bool("paper", True, "all losses; --nopaper: the student's hard loss alone")


def main() -> int:
    """Times and prints."""
    size, convolution = cast(Size, _SIZE.value), cast(Method, _CONVOLUTION.value)
    found = time_side_by_side(
        size,
        _SIDE.value,
        _TRAININGS.value,
        LossConfig(penalty=_PAPER.value, autoencoder=_PAPER.value),
        configured_optimizer(recipes.folder().train),
        _STEPS.value,
        _ROUNDS.value,
        convolution,
    )
    device = jax.local_devices()[0]
    steps = _TRAININGS.value * _STEPS.value
    print(
        f"{_TRAININGS.value} trainings of PDN-{size[0].upper()} at {_SIDE.value} pixels, "
        f"{jax.local_device_count()} x {device.device_kind}"
    )
    first = found["one after another"].median
    for way, seconds in found.items():
        print(
            f"{way:<20}{steps / seconds.median:7.2f} steps/s together "
            f"({steps / seconds.upper:.2f} to {steps / seconds.lower:.2f}), "
            f"{first / seconds.median:.2f} times as fast"
        )
    return 0


if __name__ == "__main__":
    run(main)
