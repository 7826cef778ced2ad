"""Writing a file so that nobody ever sees half of it."""

import os
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` to `path`, whose folder is made if need be.

    A reader finds the old file or the complete new one: the bytes go to a temporary name in the
    same folder, which `os.replace` then renames. A failed write leaves no temporary file behind.

    Raises:
      OSError: the folder or the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
