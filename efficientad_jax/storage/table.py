"""CSV files that hold complete lines at any time."""

import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from efficientad_jax.storage.atomic import write_atomically

Rows = Sequence[Sequence[str]]


def row_writer(file: Path, columns: Sequence[str]) -> Callable[[Rows], None]:
    """A function that adds lines to a CSV file, which its first call replaces by a new one.

    Args:
      file: the file; its folder is created if needed.
      columns: the names in the first line.

    Raises:
      OSError: from that function, if the lines cannot be written; the file is as it was before.
    """
    is_new = True

    def write(rows: Rows) -> None:
        nonlocal is_new
        lines = io.StringIO()
        csv.writer(lines).writerows([columns, *rows] if is_new else rows)
        content = os.fsencode(lines.getvalue())  # A name that is not UTF-8 keeps its bytes.
        if is_new:
            write_atomically(file, content)
            is_new = False
        elif content:
            _append(file, content)

    return write


def _append(path: Path, content: bytes) -> None:
    """Appends to a file; what cannot be written as a whole is removed again."""
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            while content:
                content = content[file.write(content) :]
        except BaseException as error:
            file.truncate(size)
            if isinstance(error, OSError):  # That of a full disk names no file.
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise
