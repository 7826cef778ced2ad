"""The commands: thin entry points over `efficientad_jax`, one a file."""

import sys
from collections.abc import Callable

from absl import app, logging

from efficientad_jax.compilation_cache import keep_compiled_programs
from efficientad_jax.errors import DivergenceError, InputError

# Exit status of a run that Ctrl-C stopped after saving its state.
STOPPED = 130


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs a command; what a user can cause ends it with one line and status 2."""
    logging.set_verbosity(logging.WARNING)
    keep_compiled_programs()
    try:
        app.run(main)
    except (InputError, DivergenceError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"error: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
