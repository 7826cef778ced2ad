"""Soak test: detects in many images of many sizes in one process.

    python -m experiments.soak --detector=runs/elpv_mono/detector
    python -m experiments.soak --images=20000 --input=128 --channels=32

Without --detector the parameters are random, for the given input size and teacher's channels.
Prints memory and speed while running. The exit status is 1 if memory grew by more than 2 % after
the first 1,000 images, if an image size caused a compilation, or if the last quarter ran at less
than 80 % of the previous quarter's speed.
"""

from functools import partial

from absl import flags

from efficientad_jax.benchmark.soak import random_detector, run_soak
from efficientad_jax.detection.detector import Detector
from efficientad_jax.errors import InputError
from experiments import run

_DETECTOR = flags.DEFINE_string("detector", "", "folder of a detector; default: a random one")
_IMAGES = flags.DEFINE_integer("images", 20_000, "number of images", lower_bound=1)
_SIZES = flags.DEFINE_integer("sizes", 50, "number of different image sizes", lower_bound=1)
_WARM = flags.DEFINE_integer("warm", 1000, "images after which memory must not grow")
_INPUT = flags.DEFINE_integer("input", 128, "without --detector: side of the input in pixels")
_CHANNELS = flags.DEFINE_integer("channels", 32, "without --detector: the teacher's channels")


def main(argv: list[str]) -> int:
    """Runs the soak test and prints its result."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}: expected flags only")
    detector = (
        Detector.load(_DETECTOR.value)
        if _DETECTOR.value
        else random_detector(_INPUT.value, _CHANNELS.value)
    )
    result = run_soak(
        detector,
        _IMAGES.value,
        _SIZES.value,
        warm_up_images=_WARM.value,
        report=partial(print, flush=True),
    )
    print(result.summary)
    return 0 if result.passed else 1


if __name__ == "__main__":
    run(main)
