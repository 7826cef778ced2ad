"""Divides a sweep among processes, on one or several hosts, by locks in its folder.

The operating system releases a lock when the process that holds it ends. So no process has to
distribute the trainings, and nothing has to be cleaned up after a process was killed.
"""

from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from efficientad_jax.errors import InputError
from efficientad_jax.storage.atomic import write_atomically


class Claims:
    """The claims of one process on the trainings of a sweep."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """Reads the failures of earlier processes.

        Args:
          folder: of the sweep; locks and failures are stored in a hidden folder in it.
          names: of the trainings.
        """
        self._folder = folder / ".sweep"
        # Trainings that failed before this process started will be tried again.
        self._before = {name: self._failure(name) for name in names}

    def claim(self, name: str) -> FileLock | None:
        """Locks a training; returns the lock, or None if another process holds it.

        The caller releases the lock at the end of the training.

        Raises:
          InputError: the folder cannot be written, or its file system does not support locks.
        """
        lock = FileLock(self._file(name, "lock"), timeout=0, thread_local=False)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            return None
        except (OSError, NotImplementedError) as error:
            raise InputError(
                f"sweep {self._folder}: cannot lock files in it ({error}); give a --workdir on a "
                "file system that can"
            ) from error
        return lock

    def write_failure(self, name: str, message: str) -> None:
        """Records that a training failed, so that other processes do not try it again."""
        write_atomically(self._file(name, "failed"), message.encode())

    def failed_since(self, name: str) -> str | None:
        """Returns the error of a training in another process since this one started, or None."""
        failure = self._failure(name)
        return None if failure is None or failure == self._before[name] else failure[1]

    def _failure(self, name: str) -> tuple[int, str] | None:
        file = self._file(name, "failed")
        try:
            return file.stat().st_mtime_ns, file.read_text(errors="replace")
        except OSError:
            return None

    def _file(self, name: str, kind: str) -> Path:
        return self._folder / f"{name.replace('/', '.')}.{kind}"
