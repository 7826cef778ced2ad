"""How subcommands read their arguments and print their lines."""

import argparse
import math
import sys
from collections.abc import Callable
from typing import NoReturn

from efficientad_jax.errors import InputError
from efficientad_jax.watching.address import without_addresses


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviated flags, and whose errors are one line without the usage."""

    def __init__(self, **options: object) -> None:
        """Takes the options of `argparse.ArgumentParser`; prints a description as it is written."""
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,  # pyright: ignore[reportArgumentType]
        )

    def error(self, message: str) -> NoReturn:
        """Reports that the arguments cannot be used. A camera's address is not printed.

        Raises:
          InputError: always.
        """
        raise InputError(f"{without_addresses(message)}; see {self.prog} --help")


def add_detector(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that comes first in every subcommand on a detector."""
    parser.add_argument("detector", metavar="DETECTOR", help="the folder of a trained detector")


def whole_number(low: int, high: int = sys.maxsize) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `low` to `high`, both included."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value}: expected {low} to {high}")
        return value

    return read


def seconds(text: str) -> float:
    """The type of an argument that is a finite number of seconds, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, 0 or more")
    return value


def missing_extra(extra: str, error: ImportError) -> InputError:
    """The error for a library that only an extra of the package installs."""
    return InputError(f"{error.name} is not installed: pip install 'efficientad-jax[{extra}]'")


def print_line(line: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)


def print_error(line: str) -> None:
    """Prints a line on stderr that reports an error after which the subcommand continues."""
    print(f"error: {line}", file=sys.stderr, flush=True)
