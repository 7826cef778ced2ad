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


# As where Ray is not installed.
_WITHOUT_RAY = """
import importlib.util, runpy
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "ray" else find_spec(name, *a)
runpy.run_module("experiments.{name}", run_name="__main__", alter_sys=True)
"""


def without_ray(name):
    """Arguments of Python that run `experiments.NAME` as where Ray is not installed."""
    return ["-c", _WITHOUT_RAY.format(name=name)]


def _run(module, *arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
