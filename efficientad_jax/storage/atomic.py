"""Writes files so that no reader ever sees an incomplete one."""

import contextlib
import os
import threading
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` to `path` and creates its folder if needed.

    A reader finds either the old file or the complete new one: the bytes are written to a temporary
    file in the same folder, which `os.replace` then renames. A failed write leaves no temporary
    file behind. Processes and threads may write to one folder at the same time, as each uses
    another temporary name.

    Raises:
      OSError: the folder or the file cannot be written; its `filename` is always set.
    """
    path = Path(path)
    # A short name, as the name in `path` may have the maximum length already.
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        # The error of a full disk names no file; other errors name the temporary one.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
