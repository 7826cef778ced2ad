"""The user's home folder in the arguments of a command."""

import re
from collections.abc import Sequence
from pathlib import Path


def expand_home(arguments: Sequence[str]) -> list[str]:
    """Replaces `~` and `~USER` at the start of arguments and of the values of flags.

    A shell does so only at the start of a word: `--workdir=~/runs` would make a folder named `~`.
    """
    return [
        re.sub(r"^(--?[\w.-]+=)?(~[\w.-]*)(?=/|$)", _expanded, argument) for argument in arguments
    ]


def _expanded(match: re.Match[str]) -> str:
    try:
        return (match[1] or "") + str(Path(match[2]).expanduser())
    except RuntimeError:  # there is no such user
        return match[0]
