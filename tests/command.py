"""The commands in processes of their own, as a user starts them."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def command(name, *arguments):
    """Runs `python -m experiments.NAME` in the repository's root and waits for its end."""
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
