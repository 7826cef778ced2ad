"""Whether the steps wait for their input: how fast either would be without the other."""

from typing import NamedTuple


class Pace(NamedTuple):
    """Sums over the steps of a run; the first dispatch, which compiles, is not among them.

    Attributes:
      images: that the steps have seen.
      making: seconds in which the input alone would have made them.
      waiting: seconds in which the steps waited for them.
      stepping: seconds in the steps themselves.
    """

    images: int = 0
    making: float = 0.0
    waiting: float = 0.0
    stepping: float = 0.0


def rates(pace: Pace) -> dict[str, float]:
    """Images a second of the input and of the steps, each alone, and the part of the time waited.

    Empty for a run of one dispatch.
    """
    if not pace.images:
        return {}
    return {
        "images_per_second/input": pace.images / pace.making,
        "images_per_second/steps": pace.images / pace.stepping,
        "waiting": pace.waiting / (pace.waiting + pace.stepping),
    }


def in_words(pace: Pace) -> str:
    """The rates as one line; '' for a run of one dispatch."""
    if not pace.images:
        return ""
    found = rates(pace)
    return (
        f"the input alone makes {found['images_per_second/input']:.1f} images/s, the steps alone "
        f"see {found['images_per_second/steps']:.1f}; waited {100 * found['waiting']:.1f} % of the "
        "time"
    )
