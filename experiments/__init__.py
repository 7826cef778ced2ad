"""The commands that make and measure detectors, one per file, run from a checkout.

Commands that use a detector are installed with the package: see `efficientad --help`.
"""

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from logging import Formatter
from pathlib import Path

from absl import app, flags, logging

from efficientad_jax.errors import InputError
from efficientad_jax.runs.signals import exit_with_one_line
from efficientad_jax.storage.cache import keep_compiled_programs
from efficientad_jax.storage.home import expand_home

# Advice on what to lower in a command that runs out of memory, by the name of its file.
_TRAINING = (
    "lower config.train.batch_size, config.model.input_height and config.model.input_width, or "
    "config.train.feature_cache_gb"
)
_DISTILLATION = "lower config.batch_size, config.crop, config.pool_views or config.backbone_size"
_MEMORY_HINTS = {
    "benchmark": "lower --batch or --side",
    "compile": "compile on a machine with more memory",
    "distill": _DISTILLATION,
    "distill_within": _DISTILLATION,
    "evaluate": "give fewer or smaller test images",
    "load_test": "lower --clients",
    "soak": "lower --sizes",
}


def run(main: Callable[..., int | None], takes_arguments: bool = False) -> None:
    """Runs a command. An error that a user can cause ends the process with one line on stderr.

    Args:
      main: the command; returns the exit status, None for 0.
      takes_arguments: whether `main` is called with a list of the arguments that are no flags;
        otherwise such arguments are refused.

    Raises:
      SystemExit: with the status of `main`, 2 if flags or files cannot be used, 130 after Ctrl-C
        and 75 after SIGTERM.
    """

    def call_main(argv: list[str]) -> int | None:
        if takes_arguments:
            return main(argv[1:])
        if len(argv) > 1:
            raise InputError(f"unexpected argument {argv[1]!r}: expected flags only")
        return main()

    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(Formatter("%(levelname)s: %(message)s"))
    with exit_with_one_line(_MEMORY_HINTS.get(Path(sys.argv[0]).stem, _TRAINING)):
        keep_compiled_programs()
        app.run(call_main, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags, and returns the program's name and the arguments that are no flags.

    Raises:
      InputError: a flag or a field of the configuration does not exist, is missing or has a value
        that cannot be used.
    """
    try:
        arguments = flags.FLAGS(expand_home(argv))
        if "config" in flags.FLAGS:
            # Any access to a configuration without a file raises OSError.
            getattr(flags.FLAGS.config, "lock", None)
    except flags.Error as error:
        raise InputError(f"{' '.join(str(error).split())} (--help lists the flags)") from error
    except OSError as error:
        raise InputError(f"--config: {str(error).splitlines()[-1].strip()}") from error
    except (AttributeError, KeyError, TypeError) as error:
        if not _is_of_a_flag(error):
            raise
        suggestion = re.search('Did you mean "(.*?)"', str(error))
        hint = f"; did you mean {suggestion[1]!r}?" if suggestion else ""
        raise InputError(f"{_unknown_field(error, argv)}: no such field{hint}") from error
    return arguments


def _is_of_a_flag(error: Exception) -> bool:
    """Whether a flag caused the error, and not a mistake in the file of a configuration.

    ml_collections raises the same errors for both. Code of the file is in the traceback only if
    the file was running.
    """
    _, *frames = traceback.extract_tb(error.__traceback__)
    parsers = {"absl", "ml_collections"}
    return all(parsers & set(Path(frame.filename).parts) for frame in frames)


def _unknown_field(error: Exception, argv: Sequence[str]) -> str:
    """The flag at which ml_collections failed.

    It has not defined a flag for the field, and the error names a part of the field, if anything.
    """
    flags_of_fields = [argument for argument in argv if re.match(r"--?config\.", argument)]
    paths = {flag: flag.lstrip("-").partition("=")[0] for flag in flags_of_fields}
    undefined = [flag for flag, path in paths.items() if path not in set(flags.FLAGS)]
    name = re.search(r"'(\w+)\\?'", str(error))
    named = [flag for flag in undefined if name and name[1] in paths[flag].split(".")]
    return next(iter(named or undefined), "--config")
