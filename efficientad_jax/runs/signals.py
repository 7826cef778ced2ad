"""Ends commands with one line and an exit status: after errors, Ctrl-C and SIGTERM.

Loops stop after the current step.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

from efficientad_jax.errors import DivergenceError, InputError, StoppedError, first_line, printable

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruption() -> Iterator[Callable[[], int]]:
    """Inside the context, the first Ctrl-C or SIGTERM sets a flag; a second has its usual effect.

    Schedulers send SIGTERM before they take the machine away. Python handles signals in the main
    thread only; in another one the context changes nothing.

    Yields:
      A function that returns the number of the signal that was received, 0 if there was none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received = 0
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(signal_number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = signal_number
        restore()

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: received
    finally:
        restore()


# Exit statuses: 130 after Ctrl-C; after SIGTERM, which schedulers send on preemption, EX_TEMPFAIL
# of sysexits.h: try again.
STOPPED = 130
PREEMPTED = 75
# 128 and the number of SIGPIPE, as of a process that this signal ends.
PIPE_CLOSED = 141


class _Terminated(SystemExit):
    """SIGTERM was received."""


@contextmanager
def exit_with_one_line(
    memory_hint: str = "use a machine with more memory",
) -> Iterator[None]:
    """Turns an error or a signal inside the context into one line on stderr and an exit status.

    The status is 2 for input that cannot be used, files that cannot be written and a lack of
    memory, 130 after Ctrl-C and 75 after SIGTERM. If the reader of the output has ended, as `head`
    does, the command ends with status 141 and without a line, as others do.

    Args:
      memory_hint: what to do if memory runs out.

    Raises:
      SystemExit: with that status.
    """
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = partial(_resend_signal, sys.unraisablehook)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        try:
            yield
        finally:
            _flush_output()  # Otherwise Python reports an error of the output after the end.
    except BrokenPipeError:
        _discard_output()
        sys.exit(PIPE_CLOSED)
    except (InputError, DivergenceError) as error:
        _exit(f"error: {error}", 2)
    except StoppedError as stopped:
        _exit(str(stopped), PREEMPTED if stopped.signal == signal.SIGTERM else STOPPED)
    except _Terminated:
        _exit("stopped by SIGTERM", PREEMPTED)
    except KeyboardInterrupt:
        _exit("stopped by SIGINT", STOPPED)
    except Exception as error:
        if is_out_of_memory(error):
            _exit(f"error: out of memory ({printable(_short(error))}); {memory_hint}", 2)
        if isinstance(error, OSError):  # a full disk, a folder that cannot be written
            _discard_output()
            _exit(f"error: {error.filename or 'file'}: {error.strerror or error}", 2)
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of this process or of a device does not suffice.

    It may be of Python, NumPy, the operating system, or XLA. XLA's is recognized by its name and
    message, as commands without JAX do not import it.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    words = ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY", "out of memory", "Out of memory")
    return bool(names & {"JaxRuntimeError", "XlaRuntimeError"}) and any(
        word in str(error) for word in words
    )


def _short(error: Exception) -> str:
    """The first line of the message, without XLA's name of the status."""
    return first_line(error).removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")


def _terminate(signal_number: int, frame: FrameType | None) -> None:
    """Raises an exception, so that incomplete files are removed before the process exits."""
    raise _Terminated(PREEMPTED)


def _resend_signal(hook: Callable[[Any], object], unraisable: Any) -> None:
    """Sends a signal again if Python dropped its exception.

    Python drops exceptions that are raised in a destructor or in a callback of the garbage
    collector. A signal that is received there would be ignored otherwise.
    """
    numbers = {_Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}
    number = numbers.get(unraisable.exc_type)
    if number is None:
        hook(unraisable)
        return
    # Later, when the destructor or callback has returned.
    timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _flush_output() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def _discard_output() -> None:
    """Discards what is not printed yet if standard output takes no more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit(line: str, status: int) -> None:
    print(line, file=sys.stderr)
    sys.exit(status)
