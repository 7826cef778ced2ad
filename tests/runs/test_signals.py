"""Tests that a signal ends a command at any point."""

import errno
import os
import subprocess
import sys

import jax
import pytest

from efficientad_jax.errors import InputError, first_line
from efficientad_jax.runs.processes import join_processes
from efficientad_jax.runs.signals import is_out_of_memory
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "status", "line"),
    [("/dev/full", 2, "error: standard output: No space left on device\n"), ("pipe", 141, "")],
)
def test_output_that_cannot_be_written_ends_a_command(target, status, line):
    code = """
from efficientad_jax.runs.signals import exit_with_one_line
with exit_with_one_line():
    print("one")
"""
    if target == "pipe":
        reader, output = os.pipe()
        os.close(reader)
    else:
        output = os.open(target, os.O_WRONLY)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(output)
    assert (done.returncode, done.stderr) == (status, line)


def test_the_first_line_of_another_librarys_error_is_reported(monkeypatch):
    assert first_line(ValueError("\n one \n two")) == "one "
    assert first_line(ValueError("x" * 1000)) == "x" * 300

    def fail():
        raise RuntimeError

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(InputError, match=r"^--coordinator=auto: cannot join \(RuntimeError\)$"):
        join_processes("auto", 1, 0)


class XlaRuntimeError(RuntimeError):
    """As XLA's, which has this name."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (type("_ArrayMemoryError", (MemoryError,), {})("Unable to allocate"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes."), True),
        (XlaRuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory"), True),
        (XlaRuntimeError("INTERNAL: something else"), False),
        (RuntimeError("out of memory"), False),
    ],
)
def test_a_lack_of_memory_is_recognized(error, expected):
    assert is_out_of_memory(error) is expected


# Arguments: the name of the file that runs, and what it does.
OUT_OF_MEMORY = """
import sys
from absl import flags
import numpy as np

name, work = sys.argv[1:]
sys.argv = [name]

def main():
    import jax.numpy as jnp
    exec(work)

from experiments import run
run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "work", "parts"),
    [
        ("train.py", "jnp.ones(1 << 48, jnp.uint8)", ("Out of memory", "config.train.batch_size")),
        ("distill.py", "np.ones(1 << 48, np.uint8)", ("Unable to allocate", "config.batch_size")),
        ("benchmark.py", "raise MemoryError", ("(MemoryError)", "lower --batch")),
    ],
)
def test_a_lack_of_memory_ends_a_command_with_what_to_lower(name, work, parts):
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, name, work],
        cwd=REPOSITORY,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: out of memory (")
    assert all(part in line for part in parts)
