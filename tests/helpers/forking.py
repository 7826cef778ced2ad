"""Commands in forked processes, so that what takes long to import is imported once."""

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]

# Forks for each line: `python -m MODULE` with these arguments. Another fork waits for it. That one
# writes the id of the process into a pipe with a name, and later how the process ended.
_SERVER = """
import json, os, runpy, signal, sys
import absl.app, flax.linen, grain, jax, ml_collections, optax, orbax.checkpoint
import scipy.ndimage, sklearn.metrics
import efficientad_jax.distillation.loop, efficientad_jax.fitting.fit_detector

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
for line in sys.stdin:
    task = json.loads(line)
    if os.fork():
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        with open(task["pipe"], "w") as pipe:
            print(pid, file=pipe, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=pipe)
        os._exit(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, task["output"]), (2, task["errors"])):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.update(task["variables"])
    sys.argv = ["", *task["arguments"]]
    runpy.run_module(task["module"], run_name="__main__", alter_sys=True)
    sys.exit(0)
"""


class Fork(NamedTuple):
    """A forked process.

    Attributes:
      pid: its id.
      pipe: gives its exit status.
    """

    pid: int
    pipe: IO[str]

    def is_alive(self) -> bool:
        return not select.select([self.pipe], [], [], 0)[0]

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.is_alive():
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Waits for its end; its exit status, negative for a signal."""
        with self.pipe:
            return int(self.pipe.readline())


@functools.cache
def _server() -> IO[str]:
    """Takes a line of JSON per fork; there is one server per process of the tests."""
    server = subprocess.Popen(
        [sys.executable, "-u", "-c", _SERVER], cwd=REPOSITORY, stdin=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    return server.stdin


def fork(
    module: str,
    arguments: list[str],
    *,
    output: Path,
    errors: Path,
    variables: Mapping[str, str] | None = None,
) -> Fork:
    """Runs `python -m MODULE ARGUMENTS` in the repository's root.

    Args:
      module: such as `experiments.train`.
      arguments: of the command.
      output: the file to which its output is appended.
      errors: the file to which its standard error is appended.
      variables: added to the environment of the tests. Of libraries, only those count that are not
        read at the import.
    """
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder, "pipe")
        os.mkfifo(name)
        task = {"module": module, "arguments": arguments, "pipe": str(name)}
        task |= {"output": str(output), "errors": str(errors), "variables": dict(variables or {})}
        print(json.dumps(task), file=_server(), flush=True)
        pipe = name.open()
        return Fork(int(pipe.readline()), pipe)
