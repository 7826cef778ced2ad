"""A signal ends a command wherever it arrives."""

import os
import subprocess
import sys

import jax
import pytest

from efficientad_jax.errors import InputError, first_line
from efficientad_jax.runs.processes import join_processes
from tests.helpers.command import REPOSITORY

# The signal comes while the garbage collector runs a callback: what is raised there is dropped.
IN_A_CALLBACK = """
import gc, os, signal, sys, time
from efficientad_jax.runs.signals import one_line_endings

def callback(phase, info):
    gc.callbacks.remove(callback)
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(0.1)

# Where the tests run in the background, Ctrl-C is ignored, and by those that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
with one_line_endings():
    gc.callbacks.append(callback)
    gc.collect()
    time.sleep(20)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name", "status"), [(15, "SIGTERM", 75), (2, "SIGINT", 130)])
def test_a_signal_whose_exception_is_dropped_comes_again(number, name, status):
    done = subprocess.run(
        [sys.executable, "-c", IN_A_CALLBACK, str(number)],
        cwd=REPOSITORY,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (status, f"stopped by {name}\n")


def test_an_error_of_somebody_elses_is_reported_in_one_line(monkeypatch):
    assert first_line(ValueError("\n one \n two")) == "one "
    assert first_line(ValueError("x" * 1000)) == "x" * 300

    def fail():
        raise RuntimeError

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(InputError, match=r"^--coordinator=auto: cannot join \(RuntimeError\)$"):
        join_processes("auto", 1, 0)
