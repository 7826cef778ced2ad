"""The commands: thin entry points over `efficientad_jax`, one a file."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

from absl import app, logging

from efficientad_jax.compilation_cache import keep_compiled_programs
from efficientad_jax.errors import DivergenceError, InputError, StoppedError

# Exit status after Ctrl-C, and after SIGTERM, by which a scheduler takes a machine away: the one
# that sysexits.h has for what is to be tried again.
STOPPED = 130
PREEMPTED = 75


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs a command; what a user can cause ends it with one line and a status of its own.

    The status is 2 for what cannot be used or written, 130 after Ctrl-C and 75 after SIGTERM.
    """
    logging.set_verbosity(logging.WARNING)
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    keep_compiled_programs()
    try:
        app.run(main)
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
