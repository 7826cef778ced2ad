"""Writing a file so that nobody ever sees half of it."""

import contextlib
import os
import threading
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` to `path`, whose folder is made if need be.

    A reader finds the old file or the complete new one: the bytes go to a temporary name in the
    same folder, which `os.replace` then renames. A failed write leaves no temporary file behind.
    Processes and threads may write into one folder at once: each has a temporary name of its own.

    Raises:
      OSError: the folder or the file cannot be written; its `filename` is always set.
    """
    path = Path(path)
    # Short, as `path` may already have the longest name that a file can have.
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        # A full disk names no file, other errors the temporary one.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
