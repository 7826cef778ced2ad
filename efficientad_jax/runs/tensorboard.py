"""Figures of a run for TensorBoard.

tensorboardX's own writer hands events to a thread; where that fails, as on a full disk, the thread
dies and the run waits for it for ever. Here each event is written at once, and a failure raised.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tensorboardX import RecordWriter

# protobuf makes these classes when they are imported, unseen by pyright.
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

WriteScalars = Callable[[Mapping[str, float], int], None]


@contextmanager
def scalar_log(folder: Path, enabled: bool = True) -> Iterator[WriteScalars]:
    """Opens a new event file in a folder, which is made if need be.

    Args:
      folder: of the event files of a run.
      enabled: False writes nothing, for all processes of a run but one.

    Yields:
      A function that takes values by name, and their step.

    Raises:
      OSError: the file cannot be written; its `filename` is set.
    """
    if not enabled:
        yield lambda values, step: None
        return
    file = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
    with _naming(file):
        folder.mkdir(parents=True, exist_ok=True)
        writer = RecordWriter(str(file))

    def write(event: Event) -> None:
        with _naming(file):
            writer.write(event.SerializeToString())
            writer.flush()

    def write_scalars(values: Mapping[str, float], step: int) -> None:
        written = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        write(Event(wall_time=time.time(), step=step, summary=written))

    try:
        write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        yield write_scalars
    finally:
        # What is left in its buffer could not be written before either, and that was raised.
        with contextlib.suppress(OSError):
            writer.close()


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Puts the file's name into errors that lack it, as that of a full disk does."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
