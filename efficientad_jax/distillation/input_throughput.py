"""Measures whether training is input-bound: throughput of the input pipeline and of the steps."""

from typing import NamedTuple


class Pace(NamedTuple):
    """Sums over the steps of a run, without the first dispatch, which compiles.

    Attributes:
      images: number of images that the steps have seen.
      making: seconds that the input pipeline by itself needs for them.
      waiting: seconds that the steps waited for them.
      stepping: seconds of the steps themselves.
    """

    images: int = 0
    making: float = 0.0
    waiting: float = 0.0
    stepping: float = 0.0


def rates(pace: Pace) -> dict[str, float]:
    """Images per second of the input and of the steps, each alone, and the fraction of time waited.

    Empty for a run of one dispatch; without the input's rate if the accelerator makes the images.
    """
    if not pace.images:
        return {}
    steps = {
        "images_per_second/steps": pace.images / pace.stepping,
        "waiting": pace.waiting / (pace.waiting + pace.stepping),
    }
    return steps | ({"images_per_second/input": pace.images / pace.making} if pace.making else {})


def summary(pace: Pace) -> str:
    """The rates as one line; '' for a run of one dispatch."""
    if not pace.images:
        return ""
    values = rates(pace)
    line = f"the steps see {values['images_per_second/steps']:.1f} images/s"
    if pace.making:
        line += f", the input by itself makes {values['images_per_second/input']:.1f}"
    return line + f"; waited {100 * values['waiting']:.1f} % of the time"
