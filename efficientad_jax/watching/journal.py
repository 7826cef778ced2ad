"""The journal: a file with the results, one line of JSON per image."""

import json
import os
from pathlib import Path
from typing import Any

from efficientad_jax.watching.arrivals import Arrival


def append_line(file: Path, entry: dict[str, Any]) -> None:
    """Appends an entry as one line; creates the file and its folder if need be.

    Raises:
      OSError: the file cannot be written.
    """
    line = json.dumps(entry, allow_nan=False).encode() + b"\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab+", buffering=0) as opened:
            # Ends a line that a power cut or a full disk left incomplete.
            if opened.tell() and os.pread(opened.fileno(), 1, opened.tell() - 1) != b"\n":
                line = b"\n" + line
            while line:  # A full disk accepts a part; the next call then raises the error.
                line = line[opened.write(line) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(file)) from error


def read_arrivals(file: Path) -> set[Arrival]:
    """The files that the journal has an entry for; empty without a journal.

    Lines that are incomplete or no entries of files are ignored.

    Raises:
      OSError: the journal exists and cannot be read.
    """
    arrivals = set()
    try:
        with file.open("rb") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                    arrival = Arrival(
                        Path(entry["image"]), int(entry["modified_ns"]), int(entry["bytes"])
                    )
                except (KeyError, TypeError, ValueError):
                    continue
                arrivals.add(arrival)
    except FileNotFoundError:
        pass
    return arrivals
