"""Writes scalars of a run for TensorBoard.

TensorBoard's own `EventFileWriter` passes events to a thread, which reports a failure, such as a
full disk, only with a later event. Here each event is written at once, and a failure raises an
exception.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

# protobuf creates these classes at import, so that pyright does not see them.
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboard.summary.writer.record_writer import RecordWriter

WriteScalars = Callable[[Mapping[str, float], int], None]

_others: ContextVar[tuple[WriteScalars, ...]] = ContextVar("other writers of scalars", default=())


@contextmanager
def also_written_to(write_scalars: WriteScalars) -> Iterator[None]:
    """Inside the context, every `scalar_log` passes its values to this function, too."""
    token = _others.set((*_others.get(), write_scalars))
    try:
        yield
    finally:
        _others.reset(token)


@contextmanager
def scalar_log(folder: Path, enabled: bool = True) -> Iterator[WriteScalars]:
    """Opens a new event file in a folder, which is created if needed.

    Args:
      folder: for the event files of a run.
      enabled: False writes nothing; only one process of a run writes.

    Yields:
      A function of values by name and their step, which writes them.

    Raises:
      OSError: the file cannot be written; its `filename` is set.
    """
    if not enabled:
        yield lambda values, step: None
        return
    file = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
    with _with_file_name(file):
        folder.mkdir(parents=True, exist_ok=True)
        writer = RecordWriter(file.open("wb"))

    def write(event: Event) -> None:
        with _with_file_name(file):
            writer.write(event.SerializeToString())
            writer.flush()

    def write_scalars(values: Mapping[str, float], step: int) -> None:
        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        write(Event(wall_time=time.time(), step=step, summary=summary))
        for write_to_other in _others.get():
            write_to_other(values, step)

    try:
        write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        yield write_scalars
    finally:
        # Data that is left in the buffer could not be written before, which raised an error then.
        with contextlib.suppress(OSError):
            writer.close()


@contextmanager
def _with_file_name(file: Path) -> Iterator[None]:
    """Adds the file's name to errors, as that of a full disk lacks it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
