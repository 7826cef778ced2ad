"""Ctrl-C and SIGTERM: a loop is ended after its step, a command by one line and a status."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

from efficientad_jax.errors import DivergenceError, InputError, StoppedError

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


# Exit status after Ctrl-C, and after SIGTERM, by which a scheduler takes a machine away: the one
# that sysexits.h has for what is to be tried again.
STOPPED = 130
PREEMPTED = 75


class _Terminated(SystemExit):
    """SIGTERM came."""


@contextmanager
def one_line_endings() -> Iterator[None]:
    """Ends the process with one line on stderr where what is run in here cannot go on.

    The status is 2 for what cannot be used or written, 130 after Ctrl-C and 75 after SIGTERM.

    Raises:
      SystemExit: with that status.
    """
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = partial(_signal_again, sys.unraisablehook)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    except (InputError, DivergenceError) as error:
        _end(f"error: {error}", 2)
    except StoppedError as stopped:
        _end(str(stopped), PREEMPTED if stopped.signal == signal.SIGTERM else STOPPED)
    except _Terminated:
        _end("stopped by SIGTERM", PREEMPTED)
    except KeyboardInterrupt:
        _end("stopped by SIGINT", STOPPED)
    except OSError as error:  # a full disk, a folder that cannot be written
        _end(f"error: {error.filename or 'file'}: {error.strerror or error}", 2)


def _terminate(signal_number: int, frame: FrameType | None) -> None:
    """Ends the process as an exception does: what is half-written is removed on the way."""
    raise _Terminated(PREEMPTED)


def _signal_again(otherwise: Callable[[Any], object], unraisable: Any) -> None:
    """Sends a signal again whose exception was dropped.

    Python drops what is raised in a destructor or in a callback of the garbage collector, where the
    signal may have come: the process would go on as if nothing had been asked of it.
    """
    numbers = {_Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}
    number = numbers.get(unraisable.exc_type)
    if number is None:
        otherwise(unraisable)
        return
    # Once the destructor or callback has returned.
    timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _end(line: str, status: int) -> None:
    print(line, file=sys.stderr)
    sys.exit(status)
