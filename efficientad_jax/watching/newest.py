"""Reads a camera or a stream in a thread, so that every frame is new when its detection begins.

Cameras and networks buffer the frames that nobody reads. If frames were read only between two
detections and a detection took longer than the interval between two frames, each frame would be
older than the last.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

# Seconds between attempts to reopen a camera after its connection was lost.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
_SLEEP_SECONDS = 0.25
# Seconds to wait for the thread at the end. OpenCV may wait longer for a camera that sends nothing;
# the thread then ends by itself afterwards, or with the process.
_SECONDS_TO_END = 5.0


class NewFrame(NamedTuple):
    """A frame.

    Attributes:
      time: of `time.monotonic` at which it was read, in seconds.
      pixels: BGR, as OpenCV returns them.
    """

    time: float
    pixels: UInt8[np.ndarray, "h w 3"]


def newest_frames(
    capture: Any,
    every: float,
    stopped: Callable[[], bool],
    *,
    reopen: Callable[[], Any],
    report_loss: Callable[[], None],
    sleep: Callable[[float], None],
) -> Generator[NewFrame, None, None]:
    """Yields frames that are read when they are due, until it is stopped.

    A thread reads all frames and drops them, except for the first one after a frame is due. It
    reopens a source whose connection is lost after 1 second, then after twice the time at each
    further attempt, at most 30 seconds.

    Args:
      capture: an open `cv2.VideoCapture`; is released at the end.
      every: seconds between two yielded frames; 0 for the next one at once.
      stopped: whether to end; is called in both threads.
      reopen: opens the source again; returns a `cv2.VideoCapture`, None if it cannot be opened.
      report_loss: is called in the thread when the connection is lost.
      sleep: waits for some seconds.
    """
    wanted, closing = threading.Event(), threading.Event()
    frames: queue.SimpleQueue[NewFrame | Exception] = queue.SimpleQueue()

    def read() -> None:
        try:
            _read(
                capture,
                wanted,
                frames,
                reopen=reopen,
                report_loss=report_loss,
                pause=lambda seconds: _pause(seconds, ended, sleep),
                ended=ended,
            )
        except Exception as error:
            frames.put(error)

    def ended() -> bool:
        return closing.is_set() or stopped()

    reader = threading.Thread(target=read, name="camera", daemon=True)
    reader.start()
    due = 0.0
    try:
        while _wait_until(due, stopped):
            wanted.set()
            frame = _received(frames, stopped)
            if frame is None:
                return
            due = frame.time + every
            yield frame
    finally:
        closing.set()
        reader.join(_SECONDS_TO_END)


def _read(
    capture: Any,
    wanted: threading.Event,
    frames: "queue.SimpleQueue[NewFrame | Exception]",
    *,
    reopen: Callable[[], Any],
    report_loss: Callable[[], None],
    pause: Callable[[float], None],
    ended: Callable[[], bool],
) -> None:
    """Reads until it has ended; puts a frame into the queue whenever `wanted` is set."""
    wait = _FIRST_WAIT
    try:
        while not ended():
            if capture is not None and capture.grab():
                wait = _FIRST_WAIT
                if not wanted.is_set():
                    continue
                now = time.monotonic()
                success, pixels = capture.retrieve()
                if success:
                    wanted.clear()
                    frames.put(NewFrame(now, pixels))
                continue
            if ended():
                return
            if capture is not None:
                capture.release()
                capture = None
                report_loss()
            pause(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
            if not ended():
                capture = reopen()
    finally:
        if capture is not None:
            capture.release()


def _received(
    frames: "queue.SimpleQueue[NewFrame | Exception]", stopped: Callable[[], bool]
) -> NewFrame | None:
    """The next frame, None if it is stopped before.

    Raises:
      Exception: the one that ended the thread.
    """
    while not stopped():
        try:
            frame = frames.get(timeout=_SLEEP_SECONDS)
        except queue.Empty:
            continue
        if isinstance(frame, Exception):
            raise frame
        return frame
    return None


def _wait_until(due: float, stopped: Callable[[], bool]) -> bool:
    """Waits until `time.monotonic` is `due`; returns False if it is stopped before."""
    while not stopped():
        left = due - time.monotonic()
        if left <= 0:
            return True
        # In short intervals, because Python resumes a sleep that a signal interrupts.
        time.sleep(min(left, _SLEEP_SECONDS))
    return False


def _pause(seconds: float, ended: Callable[[], bool], sleep: Callable[[float], None]) -> None:
    """Sleeps in short intervals, until it has ended."""
    for _ in range(math.ceil(seconds / _SLEEP_SECONDS)):
        if not ended():
            sleep(_SLEEP_SECONDS)
