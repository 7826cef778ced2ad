"""Who does what: processes share a sweep by locks in its folder, on one host or on several.

A lock is the operating system's and ends with the process that holds it. So there is nobody who
hands the trainings out, and nothing to clean up after a process that was killed.
"""

from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from efficientad_jax.errors import InputError
from efficientad_jax.storage.atomic import write_atomically


class Claims:
    """The claims of one process on the trainings of a sweep."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """Begins.

        Args:
          folder: of the sweep; locks and failures are kept in a hidden folder in it.
          names: of the trainings.
        """
        self._folder = folder / ".sweep"
        # What failed before this process began is to be tried again.
        self._before = {name: self._failure(name) for name in names}

    def claim(self, name: str) -> FileLock | None:
        """A lock on a training, to be released at its end; None if another process has it.

        Raises:
          InputError: the folder cannot be written to, or cannot lock files.
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
        """Tells the other processes that a training failed and need not be tried again by them."""
        write_atomically(self._file(name, "failed"), message.encode())

    def failed_since(self, name: str) -> str | None:
        """Why a training failed in another process since this one began, None if it did not."""
        found = self._failure(name)
        return None if found is None or found == self._before[name] else found[1]

    def _failure(self, name: str) -> tuple[int, str] | None:
        file = self._file(name, "failed")
        try:
            return file.stat().st_mtime_ns, file.read_text(errors="replace")
        except OSError:
            return None

    def _file(self, name: str, kind: str) -> Path:
        return self._folder / f"{name.replace('/', '.')}.{kind}"
