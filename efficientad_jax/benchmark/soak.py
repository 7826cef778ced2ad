"""What a long run of one process is judged by: memory, compilations and rate."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

MOST_GROWTH = 0.02
LEAST_RATE = 0.8


class Judgement(NamedTuple):
    """Attributes: whether all is `fine`, and the figures in a `line`."""

    fine: bool
    line: str


def judge_soak(
    memory: Mapping[int, int], times: Mapping[int, float], recompiled: int, warm: int
) -> Judgement:
    """Judges a run by what was noted as it went.

    Args:
      memory: bytes resident after so many images.
      times: seconds since any moment after so many images, and at 0.
      recompiled: programs compiled after the first batch.
      warm: images after which memory is not to grow.

    Returns:
      Fine if memory grew by at most `MOST_GROWTH` from then on, nothing was compiled, and the last
      quarter ran at `LEAST_RATE` of the rate of the one before or more.
    """
    marks = sorted(memory)
    first = next((mark for mark in marks if mark >= warm), marks[0])
    growth = memory[marks[-1]] / memory[first] - 1
    quarters = np.interp(np.linspace(0, marks[-1], 5), [0, *marks], [times[m] for m in (0, *marks)])
    third, last = np.diff(quarters)[2:]
    rate = float(third / last)
    return Judgement(
        growth <= MOST_GROWTH and not recompiled and rate >= LEAST_RATE,
        f"memory grew by {100 * growth:.2f} % after {first} images, {recompiled} compilations "
        f"after the first batch, the last quarter ran at {100 * rate:.0f} % of the rate before",
    )
