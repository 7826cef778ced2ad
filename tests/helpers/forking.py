"""Commands in forked processes, so that what takes long to import is imported once."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]

# Imports libraries and the modules that are named, then forks for each line: `python -m MODULE`
# with these arguments. It prints the id of the process and how that process ended.
_SERVER = """
import importlib, json, os, runpy, sys
import absl.app, flax.linen, grain, jax, ml_collections, optax, orbax.checkpoint
import scipy.ndimage, sklearn.metrics

for name in sys.argv[1:]:
    importlib.import_module(name)

for line in sys.stdin:
    task = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, name in ((1, task["output"]), (2, task["errors"])):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        sys.argv = ["", *task["arguments"]]
        runpy.run_module(task["module"], run_name="__main__", alter_sys=True)
        sys.exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class ForkServer(NamedTuple):
    """A process that forks; one fork runs at a time.

    Attributes:
      tasks: takes a line of JSON per fork.
      answers: gives the id of a fork, then its exit status.
    """

    tasks: IO[str]
    answers: IO[str]


class Fork(NamedTuple):
    """A forked process."""

    server: ForkServer
    pid: int

    def is_alive(self) -> bool:
        return not select.select([self.server.answers], [], [], 0)[0]

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.is_alive():
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Waits for its end; its exit status, negative for a signal."""
        return int(self.server.answers.readline())


@contextlib.contextmanager
def fork_server(
    environment: Mapping[str, str] | None = None, *, modules: Sequence[str] = ()
) -> Iterator[ForkServer]:
    """A server in the repository's root.

    Args:
      environment: None for that of the tests.
      modules: of the package that it imports, besides the libraries.
    """
    with subprocess.Popen(
        [sys.executable, "-u", "-c", _SERVER, *modules],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield ForkServer(process.stdin, process.stdout)
        process.stdin.close()


def fork(
    server: ForkServer, module: str, arguments: list[str], *, output: Path, errors: Path
) -> Fork:
    """Runs `python -m MODULE ARGUMENTS` with the environment of the server.

    Args:
      server: nothing else of it may be running.
      module: such as `experiments.train`.
      arguments: of the command.
      output: the file to which its output is appended.
      errors: the file to which its standard error is appended.
    """
    task = {"module": module, "arguments": arguments, "output": str(output), "errors": str(errors)}
    print(json.dumps(task), file=server.tasks, flush=True)
    return Fork(server, int(server.answers.readline()))
