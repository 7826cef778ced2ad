"""Runs commands in separate processes, as a user does."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.forking import REPOSITORY, fork


def command(name, *arguments, **variables):
    """Runs `python -m experiments.NAME` in the repository's root and waits for its end.

    `variables` are added to the environment of the tests.
    """
    return _run(f"experiments.{name}", *arguments, **variables)


def efficientad(*arguments, **variables):
    """Runs `efficientad ARGUMENTS` in the repository's root and waits for its end."""
    return _run("efficientad_jax", *arguments, **variables)


def _run(module, *arguments, **variables):
    arguments = [str(argument) for argument in arguments]
    if variables:  # libraries read some of them when they are imported
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=False,
        )
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        status = fork(module, arguments, output=output, errors=errors).wait()
        return subprocess.CompletedProcess(
            [module, *arguments], status, output.read_text(), errors.read_text()
        )
