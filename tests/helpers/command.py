"""Runs commands in separate processes, as a user does."""

import atexit
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.forking import REPOSITORY, ForkServer, fork, fork_server


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


@functools.cache
def _server() -> ForkServer:
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(fork_server())


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
        status = fork(_server(), module, arguments, output=output, errors=errors).wait()
        return subprocess.CompletedProcess(
            [module, *arguments], status, output.read_text(), errors.read_text()
        )
