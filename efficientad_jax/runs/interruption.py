"""Ctrl-C or SIGTERM ends a loop after the step it is in, so that the state can be saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruption() -> Iterator[Callable[[], int]]:
    """While open, the first Ctrl-C or SIGTERM is only noted; the next one does what it did before.

    SIGTERM is what a scheduler sends ahead of taking the machine away.

    Yields:
      A function that gives the number of the signal that came, 0 before any. Usable in the main
      thread alone, as Python handles signals there.
    """
    came = 0
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(signal_number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = signal_number
        restore()

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        restore()
