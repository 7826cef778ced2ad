"""Ctrl-C ends a loop after the step it is in, so that the state can be saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """While open, the first Ctrl-C is only noted; a second one interrupts as usual.

    Yields:
      A function that tells whether Ctrl-C was pressed. Usable in the main thread alone, as Python
      handles signals there.
    """
    pressed = False
    previous = signal.getsignal(signal.SIGINT)

    def note(signal_number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)
