"""The fields of a training's configuration as flags, such as `--config.train.steps=2000`."""

import argparse
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from efficientad_jax.config import field_types

_PREFIX = "config."
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def add_fields(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each field. The help leaves them out, as they are many."""
    for name, hint in field_types().items():
        parser.add_argument(
            f"--{_PREFIX}{name}",
            dest=f"{_PREFIX}{name}",
            metavar="VALUE",
            type=_reader(hint),
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )


def given_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields that were given, by names such as 'train.steps'."""
    return {
        name.removeprefix(_PREFIX): value
        for name, value in vars(options).items()
        if name.startswith(_PREFIX)
    }


def _reader(hint: Any) -> Callable[[str], Any]:
    """Reads a value of a type. Its range is checked where the configuration is made."""
    kinds = (str,) if get_origin(hint) is Literal else get_args(hint) or (hint,)

    def read(text: str) -> Any:
        if type(None) in kinds and text == "None":
            return None
        try:
            if bool in kinds:
                return _TRUTH[text.lower()]
            if int in kinds and float not in kinds:
                return int(text)
            return float(text) if float in kinds else text
        except (KeyError, ValueError):
            names = {bool: "True or False", int: "a whole number", float: "a number"}
            expected = " or ".join(names.get(kind, "None") for kind in kinds)
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}") from None

    return read
