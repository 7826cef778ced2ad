"""Runs commands in separate processes, as a user does."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def command(name, *arguments, **variables):
    """Runs `python -m experiments.NAME` in the repository's root and waits for its end.

    `variables` of the environment are set in addition to those of the tests.
    """
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
