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

    Empty for a run of one dispatch.
    """
    if not pace.images:
        return {}
    return {
        "images_per_second/input": pace.images / pace.making,
        "images_per_second/steps": pace.images / pace.stepping,
        "waiting": pace.waiting / (pace.waiting + pace.stepping),
    }


def summary(pace: Pace) -> str:
    """The rates as one line; '' for a run of one dispatch."""
    if not pace.images:
        return ""
    values = rates(pace)
    return (
        f"by itself the input makes {values['images_per_second/input']:.1f} images/s, the steps "
        f"see {values['images_per_second/steps']:.1f}; waited {100 * values['waiting']:.1f} % of "
        "the time"
    )
