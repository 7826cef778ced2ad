"""Runs commands in separate processes, as a user does."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def command(name, *arguments, **variables):
    """Runs `python -m experiments.NAME` in the repository's root and waits for its end.

    `variables` are added to the environment of the tests.
    """
    return _run(f"experiments.{name}", *arguments, **variables)


def efficientad(*arguments, **variables):
    """Runs `efficientad ARGUMENTS` in the repository's root and waits for its end."""
    return _run("efficientad_jax", *arguments, **variables)


def _run(module, *arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
