"""The command `efficientad`: makes, measures and uses detectors, one file per subcommand.

A file has the function `add_arguments`, which describes its flags, and the function `run`. Only the
file of the subcommand at hand is imported: `efficientad --help` loads neither JAX nor the others.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from efficientad_jax.commands.command_line import Parser
from efficientad_jax.runs.signals import exit_with_one_line
from efficientad_jax.storage.home import expand_home

# Every subcommand and its line in the help.
COMMANDS = {
    "train": "make a detector from a folder of images",
    "evaluate": "measure a detector on test images, with a report",
    "info": "describe a detector: input, data, teacher, threshold, metrics",
    "predict": "score images and draw heat maps",
    "set-threshold": "choose a detector's threshold for another false-alarm rate",
    "export": "write a detector as ONNX or StableHLO",
    "evaluate-exported": "compare exported detectors with the one that they come from",
    "serve": "score images that are posted over HTTP",
    "watch": "score images that arrive in a folder or from a camera",
    "import-teacher": "convert a teacher that was trained in PyTorch",
    "export-teacher": "convert a teacher for PyTorch",
    "clear-cache": "remove the teacher features that sweeps keep on disk",
}

# The folders of the subcommands that do not lie next to this file.
_FOLDERS = {
    "train": "training",
    "evaluate": "training",
    "clear-cache": "training",
    "import-teacher": "teachers",
    "export-teacher": "teachers",
}

# Advice for a subcommand that runs out of memory; the first is for the others.
_MEMORY_HINT = "close other programs or use a machine with more memory"
_MEMORY_HINTS = {
    "train": "lower config.train.batch_size, config.model.input_height and "
    "config.model.input_width, or config.train.feature_cache_gb",
    "evaluate": "give fewer or smaller test images",
    "predict": "large images need less with --tile --no-pictures, smaller ones with --no-pictures",
    "export": "give fewer or smaller --calibration-images",
    "evaluate-exported": "give one exported file at a time",
    "serve": "lower --max-requests, --max-bytes or --max-pixels",
    "watch": "give smaller images, or --pictures=none",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand. An error that a user can cause ends the process with one line on stderr.

    Args:
      arguments: the command line without the name of the program; by default that of this process.

    Returns:
      The exit status: 0, or 1 if the subcommand failed for a part of its input.

    Raises:
      SystemExit: with status 2 if arguments or files cannot be used, 130 after Ctrl-C, 75 after
        SIGTERM, 0 after `--help`.
    """
    words = expand_home(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with exit_with_one_line(_MEMORY_HINTS.get(words[0] if words else "", _MEMORY_HINT)):
        run, options = _parse(words)
        # Imports JAX, which `--help` does not wait for.
        from efficientad_jax.storage.cache import keep_compiled_programs

        keep_compiled_programs()
        return run(options)


def module_of(name: str) -> str:
    """The absolute name of a subcommand's module: the name with underscores, in its folder."""
    folder = f".{_FOLDERS[name]}" if name in _FOLDERS else ""
    return f"{__name__}{folder}.{name.replace('-', '_')}"


def _parse(words: list[str]) -> tuple[Callable[[argparse.Namespace], int], argparse.Namespace]:
    """The function of the subcommand that is named first, and its arguments.

    Raises:
      InputError: there is no such subcommand, or an argument of it cannot be used.
      SystemExit: after `--help`.
    """
    # `python -m efficientad_jax` also works where the console command is not on the path.
    as_module = Path(sys.argv[0]).name == "__main__.py"
    parser = Parser(
        prog="python -m efficientad_jax" if as_module else "efficientad",
        description="Trains and uses anomaly detectors, and converts teachers.",
        epilog="`%(prog)s COMMAND --help` describes the arguments of a command.",
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    parsers = {name: subparsers.add_parser(name, help=line) for name, line in COMMANDS.items()}
    name = words[0] if words else ""
    if name not in COMMANDS:
        parser.parse_args(words)  # Prints the help or raises.
        raise AssertionError(f"{words} was parsed, without a subcommand")
    module = import_module(module_of(name))
    parsers[name].description = module.__doc__
    module.add_arguments(parsers[name])
    # Flags may stand between files.
    return module.run, parsers[name].parse_intermixed_args(words[1:])
