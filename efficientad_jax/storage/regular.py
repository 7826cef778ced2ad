"""Checks the type of a file before it is opened."""

import os
import stat
from pathlib import Path

from efficientad_jax.errors import InputError


def require_regular_file(
    path: Path, name: str, most_bytes: int | None = None, *, follow_links: bool = True
) -> None:
    """Checks that a path leads to a regular file.

    Reading from a pipe could wait forever, and a device may never end.

    Args:
      path: of the file.
      name: of the file in error messages, such as 'image a.png'.
      most_bytes: the largest allowed size; None for any.
      follow_links: whether a symbolic link to a regular file is allowed.

    Raises:
      InputError: the path leads to something else, the file is too large, or it is not accessible.
    """
    try:
        status = os.stat(path, follow_symlinks=follow_links)
    except FileNotFoundError as error:
        broken = path.is_symlink()
        raise InputError(
            f"{name}: {'a link to a file that does not exist' if broken else 'no such file'}"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name}: cannot be read ({reason})") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{name}: is a folder, expected a file")
    if stat.S_ISLNK(status.st_mode):
        raise InputError(f"{name}: is a symbolic link, expected the file itself")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name}: is a pipe, device or socket, expected a file")
    if most_bytes is not None and status.st_size > most_bytes:
        raise InputError(f"{name}: {status.st_size} bytes, expected at most {most_bytes}")
