"""Errors that a user can cause, each with a message of one line."""

import errno
import signal


def printable(text: str) -> str:
    """The text as one line: characters that are not printable are escaped as in Python."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def first_line(error: Exception) -> str:
    """The first line of the message of another library's error; its type if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def stops_all_writing(error: OSError) -> bool:
    """Whether no other file could be written either: the disk is full or read-only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class _OneLineError(Exception):
    """An error whose message is one line of printable characters, whatever names it holds."""

    def __init__(self, message: str) -> None:
        """Escapes line breaks, control characters and undecodable bytes as in Python."""
        super().__init__(printable(message))


class InputError(_OneLineError, ValueError):
    """Something given from outside (a file, a folder, a configuration) cannot be used.

    The message is one line: its subject, what was found, what was expected and what to do. The
    commands print only the message, without a traceback, and exit with status 2.
    """


class TooManyPixelsError(InputError):
    """An image has more pixels than are accepted."""


class UnknownFormatError(InputError):
    """A file is no image, or an image of a format that is not read."""


class DivergenceError(_OneLineError, ArithmeticError):
    """A loss or a parameter is no longer a finite number. The message is one line."""


class StoppedError(Exception):
    """A signal stopped a run after its state was saved; the same command resumes from there.

    Attributes:
      signal: the first that came, Ctrl-C's SIGINT or SIGTERM.
      step: number of steps done, of a single training.
    """

    def __init__(self, signal_number: int, step: int | None = None) -> None:
        """Takes the signal's number and, of a single training, how many steps are done."""
        after = "" if step is None else f" after step {step}"
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name}{after}; "
            "the same command resumes from there"
        )
        self.signal = signal_number
        self.step = step
