"""How a command ends: what a user can cause gives one line and a status of its own."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from efficientad_jax.errors import DivergenceError, InputError, StoppedError

# Exit status after Ctrl-C, and after SIGTERM, by which a scheduler takes a machine away: the one
# that sysexits.h has for what is to be tried again.
STOPPED = 130
PREEMPTED = 75


@contextmanager
def one_line_endings() -> Iterator[None]:
    """Ends the process with one line on stderr where what is run in here cannot go on.

    The status is 2 for what cannot be used or written, 130 after Ctrl-C and 75 after SIGTERM.

    Raises:
      SystemExit: with that status.
    """
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    except (InputError, DivergenceError) as error:
        _end(f"error: {error}", 2)
    except StoppedError as stopped:
        _end(str(stopped), PREEMPTED if stopped.signal == signal.SIGTERM else STOPPED)
    except KeyboardInterrupt:
        _end("stopped by SIGINT", STOPPED)
    except OSError as error:  # a full disk, a folder that cannot be written
        _end(f"error: {error.filename or 'file'}: {error.strerror or error}", 2)


def _terminate(signal_number: int, frame: FrameType | None) -> None:
    """Ends the process as an exception does: what is half-written is removed on the way."""
    _end("stopped by SIGTERM", PREEMPTED)


def _end(line: str, status: int) -> None:
    print(line, file=sys.stderr)
    sys.exit(status)
