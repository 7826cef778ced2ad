"""The file of results: a line of JSON for each image."""

import json
import os
from pathlib import Path
from typing import Any

from efficientad_jax.watching.arrivals import Arrival


def append_line(file: Path, record: dict[str, Any]) -> None:
    """Appends a record as one line; the file and its folder are made if need be.

    Raises:
      OSError: it cannot be written.
    """
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab+", buffering=0) as opened:
            # The end of a line that a power cut or a full disk left half-written.
            if opened.tell() and os.pread(opened.fileno(), 1, opened.tell() - 1) != b"\n":
                line = b"\n" + line
            while line:  # A full disk takes a part, and the next call says why.
                line = line[opened.write(line) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(file)) from error


def read_arrivals(file: Path) -> set[Arrival]:
    """The files that have a line, as they were then; empty without a journal.

    A line that is none of `append_line` is passed over.

    Raises:
      OSError: it is there and cannot be read.
    """
    found = set()
    try:
        with file.open("rb") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                    arrival = Arrival(
                        Path(record["image"]), int(record["modified_ns"]), int(record["bytes"])
                    )
                except (KeyError, TypeError, ValueError):
                    continue
                found.add(arrival)
    except FileNotFoundError:
        pass
    return found
