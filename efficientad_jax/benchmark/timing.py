"""Compares times on a noisy machine: interleaved calls, summarized by their medians."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

# Seconds. Thread pools spin for a while after their last work; each call waits until the pools of
# the previous one are idle.
_PAUSE = 0.03


class Spread(NamedTuple):
    """Quartiles of the seconds per call over all rounds.

    Attributes:
      median: the second quartile.
      lower: the first quartile.
      upper: the third quartile.
    """

    median: float
    lower: float
    upper: float


def time_interleaved(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Spread]:
    """Times calls in an interleaved order, so that all are disturbed alike.

    Every call is made once before the first round. Each round makes each call once, starting with a
    different one, with a pause before every call.

    Args:
      calls: by name; each returns when its work is done.
      rounds: how often each call is timed.
      clock: returns the time in seconds.
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
    return {name: spread(times) for name, times in seconds.items()}


def spread(seconds: list[float]) -> Spread:
    """Median and quartiles, interpolated linearly."""
    lower, median, upper = np.quantile(seconds, [0.25, 0.5, 0.75])
    return Spread(float(median), float(lower), float(upper))
