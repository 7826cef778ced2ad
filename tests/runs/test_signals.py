"""Tests that a signal ends a command at any point."""

import os
import subprocess
import sys

import jax
import pytest

from efficientad_jax.errors import InputError, first_line
from efficientad_jax.runs.processes import join_processes
from tests.helpers.command import REPOSITORY

# The signal arrives in a callback of the garbage collector, where Python drops exceptions.
IN_A_CALLBACK = """
import gc, os, signal, sys, time
from efficientad_jax.runs.signals import exit_with_one_line

def callback(phase, info):
    gc.callbacks.remove(callback)
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(0.1)

# If the tests run in the background, they and their child processes ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
with exit_with_one_line():
    gc.callbacks.append(callback)
    gc.collect()
    time.sleep(20)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name", "status"), [(15, "SIGTERM", 75), (2, "SIGINT", 130)])
def test_a_signal_whose_exception_is_dropped_is_sent_again(number, name, status):
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


def test_the_first_line_of_another_librarys_error_is_reported(monkeypatch):
    assert first_line(ValueError("\n one \n two")) == "one "
    assert first_line(ValueError("x" * 1000)) == "x" * 300

    def fail():
        raise RuntimeError

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(InputError, match=r"^--coordinator=auto: cannot join \(RuntimeError\)$"):
        join_processes("auto", 1, 0)
