"""Work directories in the storage of a cloud, such as `gs://bucket/run`: a local copy and uploads.

Any file system of fsspec works; `gs://` needs the package gcsfs, `s3://` the package s3fs.
"""

import logging
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import fsspec

from efficientad_jax.errors import InputError, first_line
from efficientad_jax.runs.workdir import Workdir

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_UPLOADS = 60.0
# Orbax writes a checkpoint under a name that holds this, and then renames it.
_UNFINISHED = "orbax-checkpoint-tmp"


@contextmanager
def local_workdir(workdir: str) -> Iterator[Path]:
    """Yields a local folder for a work directory; only an address with `://` is a remote one.

    A remote work directory is downloaded to a temporary folder first. Files that are new or have
    changed are uploaded every minute and at the end, also after an error or a signal. A checkpoint
    that was being uploaded when the machine was lost is found to be damaged, and the one before it
    is used.

    Args:
      workdir: a path, or an address of fsspec.

    Raises:
      InputError: the address cannot be used, or its files cannot be read or written.
    """
    if "://" not in workdir:
        yield Path(workdir)
        return
    with tempfile.TemporaryDirectory(prefix="efficientad-jax-") as folder:
        local = Path(folder) / "workdir"
        remote = _Remote(workdir, local)
        remote.download()
        ended = threading.Event()
        uploads = threading.Thread(target=remote.upload_until, args=(ended,), daemon=True)
        uploads.start()
        try:
            yield local
        finally:
            ended.set()
            uploads.join()
            remote.upload()


class _Remote:
    """A remote work directory and its local copy."""

    def __init__(self, address: str, local: Path) -> None:
        self._address, self._local = address, local
        try:
            self._files, self._root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError, OSError) as error:
            raise self._error("cannot be opened", error) from error
        self._uploaded: dict[PurePosixPath, tuple[int, int]] = {}

    def download(self) -> None:
        """Copies all files that exist."""
        try:
            if self._files.exists(self._root):
                self._files.get(f"{self._root}/", f"{self._local}/", recursive=True)
        except Exception as error:  # of any type, by the file system
            raise self._error("cannot be read", error) from error
        self._uploaded = self._state()

    def upload_until(self, ended: threading.Event) -> None:
        """Uploads again and again; a failure is reported and tried again."""
        while not ended.wait(_SECONDS_BETWEEN_UPLOADS):
            try:
                self.upload()
            except InputError as error:
                _log.warning("%s; it is tried again", error)

    def upload(self) -> None:
        """Copies new and changed files, and removes checkpoints that are gone."""
        state = self._state()
        try:
            for file, version in state.items():
                if self._uploaded.get(file) != version:
                    self._files.put_file(str(self._local / file), f"{self._root}/{file}")
                    self._uploaded[file] = version
            checkpoints = Workdir(self._local).checkpoints.name
            for file in self._uploaded.keys() - state.keys():
                if file.parts[0] == checkpoints:
                    self._files.rm_file(f"{self._root}/{file}")
                del self._uploaded[file]
        except Exception as error:  # of any type, by the file system
            raise self._error("cannot be written", error) from error

    def _state(self) -> dict[PurePosixPath, tuple[int, int]]:
        """Size and time of modification of each complete local file."""
        state = {}
        for path in sorted(self._local.rglob("*")):
            file = PurePosixPath(path.relative_to(self._local))
            if any(part.startswith(".") or _UNFINISHED in part for part in file.parts):
                continue
            try:
                status = path.stat()
            except FileNotFoundError:  # a checkpoint that was removed in the meantime
                continue
            if path.is_file():
                state[file] = status.st_size, status.st_mtime_ns
        return state

    def _error(self, what: str, error: Exception) -> InputError:
        return InputError(f"workdir {self._address}: {what} ({first_line(error)})")
