"""Times that can be compared although the machine is noisy: taken in turns, told as medians."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

# Thread pools spin for a while after their last work. Each call waits for the others' to sleep.
_PAUSE = 0.03


class Spread(NamedTuple):
    """Seconds that a call took, over all rounds.

    Attributes:
      median: half of the calls took less.
      lower: a quarter took less.
      upper: a quarter took more.
    """

    median: float
    lower: float
    upper: float


def time_in_turns(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Spread]:
    """Times calls in turns, so that all see the same disturbances.

    Every call is made once before the first round. Each round makes all of them, beginning with
    another one, after a pause.

    Args:
      calls: by name; each returns when its work is done.
      rounds: how often each is timed.
      clock: seconds.
      sleep: waits for some seconds.
    """
    for call in calls.values():
        call()
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            sleep(_PAUSE)
            start = clock()
            calls[name]()
            seconds[name].append(clock() - start)
    return {name: spread(taken) for name, taken in seconds.items()}


def spread(seconds: list[float]) -> Spread:
    """Median and quartiles, interpolated linearly."""
    lower, median, upper = np.quantile(seconds, [0.25, 0.5, 0.75])
    return Spread(float(median), float(lower), float(upper))
