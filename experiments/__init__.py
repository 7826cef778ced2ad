"""The commands: thin entry points over `efficientad_jax`, one a file."""

from collections.abc import Callable
from logging import Formatter

from absl import app, logging

from efficientad_jax.runs.signals import exit_with_one_line
from efficientad_jax.storage.cache import keep_compiled_programs


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs a command; what a user can cause ends it with one line and a status of its own.

    The status is 2 for what cannot be used or written, 130 after Ctrl-C and 75 after SIGTERM.
    """
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(Formatter("%(levelname)s: %(message)s"))
    with exit_with_one_line():
        keep_compiled_programs()
        app.run(main)
